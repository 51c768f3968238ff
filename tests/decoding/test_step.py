"""Greedy decoding by the decode step: the plain model's tokens, whatever runs beside; what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lit_eff.decoding.step import StepDecoder
from lit_eff.errors import UserError
from lit_eff.models.config import ExitConfig, ModelConfig
from lit_eff.models.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=61,
    layers=2,
    model_dim=64,
    heads=4,
    kv_heads=2,
    mlp_dim=80,
    context=40,
    tied=False,
    init_std=0.2,
)
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [8]]
SCALED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def make_model(config: ModelConfig = CONFIG) -> Transformer:
    torch.manual_seed(0)
    return Transformer(config)


@torch.inference_mode()
def plain_greedy(model: Transformer, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        hidden_BTC = model(torch.tensor([tokens]))[-1]
        tokens.append(int(model.logits(hidden_BTC[0, -1], len(model.config.exit_layers) - 1).argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, tied=True, rope_theta=500.0, rope_scaling=SCALED, norm_eps=1e-3),
        replace(CONFIG, kv_heads=1, head_dim=32, output_bias=True, logit_softcap=3.0, exits=ExitConfig((1,))),
    ],
    ids=["untied", "tied, scaled positions", "one kv head, head with bias and softcap, an exit"],
)
def test_tokens_of_the_plain_model(config: ModelConfig) -> None:
    model = make_model(config)
    if config.output_bias:
        torch.nn.init.normal_(model.head.output.bias)  # type: ignore[union-attr, arg-type]
    expected = [plain_greedy(model, prompt, 4) for prompt in PROMPTS]
    assert len({tuple(each) for each in expected}) == len(PROMPTS)
    decoder = StepDecoder(model, sequences=2)
    assert decoder.generate(PROMPTS, 4) == expected
    assert decoder.generate(PROMPTS[1:], 3) == [expected[1][:3]]
    assert [plain_greedy(model, prompt, 4) for prompt in PROMPTS] == expected


def test_parameters_are_views() -> None:
    """Weights that are loaded into the model after packing are the step's."""
    decoder = StepDecoder(make_model())
    torch.manual_seed(1)
    other = Transformer(CONFIG)
    before = decoder.generate(PROMPTS[:1], 2)
    decoder.model.load_state_dict(other.state_dict())
    expected = [plain_greedy(other, PROMPTS[0], 2)]
    assert expected != before
    assert decoder.generate(PROMPTS[:1], 2) == expected


def test_a_full_cache() -> None:
    decoder = StepDecoder(make_model(), slots=10)
    assert len(decoder.generate(PROMPTS[:1], 2)[0]) == 2
    with pytest.raises(UserError, match="a prompt of 9 tokens and 3 more do not fit 10 slots"):
        decoder.generate(PROMPTS[:1], 3)


@pytest.mark.parametrize(
    ("trait", "value"),
    [
        ("norm", "layer"),
        ("norm_position", "post"),
        ("positions", "learned"),
        ("rotary_dim", 8),
        ("mlp", "gelu"),
        ("qkv_bias", True),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("qk_norm", True),
        ("window", 4),
        ("attention_softcap", 20.0),
        ("labels", 3),
        ("causal", False),
        ("embedding_norm", True),
    ],
)
def test_other_families_are_refused(trait: str, value: Any) -> None:
    model = make_model(replace(CONFIG, **{trait: value}))
    with pytest.raises(UserError, match=f"model.{trait} is {value!r}, not"):
        StepDecoder(model)


@pytest.mark.parametrize(
    ("prompts", "count", "message"),
    [
        ([], 1, "0 prompts for a decoder of 1 sequences"),
        ([[1], [2]], 1, "2 prompts for a decoder of 1"),
        ([[]], 1, "a prompt of 0 tokens"),
        ([[1]], 0, "0 tokens to generate"),
        ([[61]], 1, "tokens hold 61; expected 0 to 60"),
    ],
)
def test_mistakes(prompts: list[list[int]], count: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        StepDecoder(make_model()).generate(prompts, count)


def test_dtypes_and_sizes() -> None:
    model = make_model()
    model.head.norm.double()
    with pytest.raises(UserError, match="of several dtypes"):
        StepDecoder(model)
    with pytest.raises(UserError, match=r"head dim 12 is not a power of two"):
        StepDecoder(make_model(replace(CONFIG, head_dim=12))).generate([[1]], 1)
