"""Our attention inside Hugging Face's own model code: the same numbers, no graph breaks, clear refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.models.hf_attention import register_attention

transformers = pytest.importorskip("transformers")


def model_of(attention: str, family: str = "gpt2") -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "use_cache": False, "bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        config = transformers.GPT2Config(
            n_positions=32, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **sizes
        )
    else:
        config = transformers.MistralConfig(
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=8,
            **sizes,
        )
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    model.loss_type = "ForCausalLM"
    return model.train()


def loss_and_gradient(model: torch.nn.Module, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
    loss = model(input_ids=tokens_BT, labels=tokens_BT).loss
    loss.backward()
    return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_same_loss_and_gradients_as_sdpa(family: str) -> None:
    """Mistral brings grouped heads and a sliding window shorter than the text."""
    tokens_BT = torch.randint(64, (2, 24), generator=torch.Generator().manual_seed(1))
    expected = loss_and_gradient(model_of("sdpa", family), tokens_BT)
    got = loss_and_gradient(model_of(register_attention(), family), tokens_BT)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_compiles_in_one_graph() -> None:
    tokens_BT = torch.randint(64, (1, 16))
    model = model_of(register_attention())
    expected = model(input_ids=tokens_BT, labels=tokens_BT).loss
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(input_ids=tokens_BT, labels=tokens_BT).loss, expected)


def test_what_it_cannot_say_is_refused() -> None:
    model = model_of(register_attention())
    tokens_BT = torch.randint(64, (1, 16))
    padded = torch.ones_like(tokens_BT)
    model(input_ids=tokens_BT, attention_mask=padded)
    padded[0, 0] = 0
    with pytest.raises(UserError, match="no padding"):
        model(input_ids=tokens_BT, attention_mask=padded)
    with pytest.raises(UserError, match="packed positions"):
        model(input_ids=tokens_BT, position_ids=torch.arange(16)[None] % 8)


def test_generates_with_a_dynamic_cache() -> None:
    prompt = torch.randint(64, (1, 5))
    arguments = {"max_new_tokens": 6, "do_sample": False, "use_cache": True}
    expected = model_of("sdpa").eval().generate(prompt, **arguments)
    got = model_of(register_attention()).eval().generate(prompt, **arguments)
    assert got.tolist() == expected.tolist()
    with pytest.raises(UserError, match="static cache"):
        model_of(register_attention()).eval().generate(prompt, cache_implementation="static", **arguments)
