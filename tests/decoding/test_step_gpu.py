"""Greedy decoding by captured steps: tokens in company, by launches, and beside the plain model's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lit_eff.decoding.step import StepDecoder
from lit_eff.kernels.decode_step import default_plan
from lit_eff.models.config import ModelConfig
from lit_eff.models.transformer import Transformer

pytestmark = pytest.mark.gpu

CONFIG = ModelConfig(
    vocab_size=2000, layers=4, model_dim=576, heads=9, kv_heads=3, mlp_dim=1536, context=512, init_std=0.05
)
PROMPTS = [list(range(7, 7 + length)) for length in (1, 5, 126, 300)]
COUNT = 60


def decoder_of(sequences: int, dtype: torch.dtype) -> StepDecoder:
    torch.manual_seed(0)
    return StepDecoder(Transformer(CONFIG).to("cuda", dtype), sequences)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_prompts_alone_and_in_company(dtype: torch.dtype) -> None:
    decoder = decoder_of(len(PROMPTS), dtype)
    together = decoder.generate(PROMPTS, COUNT)
    assert [decoder.generate([prompt], COUNT)[0] for prompt in PROMPTS] == together
    assert decoder.generate(PROMPTS[::-1], COUNT) == together[::-1]


def test_every_token_is_nearly_the_plain_models() -> None:
    """No token that the plain model finds clearly less likely than its own choice."""
    decoder = decoder_of(len(PROMPTS), torch.float16)
    for prompt, tokens in zip(PROMPTS, decoder.generate(PROMPTS, COUNT), strict=True):
        with torch.inference_mode():
            hidden_TC = decoder.model(torch.tensor([[*prompt, *tokens]], device="cuda"))[-1][0]
            logits_TV = decoder.model.logits(hidden_TC[len(prompt) - 1 : -1], 0).float()
        chosen_T = logits_TV.gather(1, torch.tensor(tokens, device="cuda")[:, None])[:, 0]
        assert (logits_TV.amax(dim=1) - chosen_T).max() <= 0.02 * logits_TV.std()


def test_both_forms_have_one_set_of_bits() -> None:
    decoder = decoder_of(1, torch.bfloat16)
    (tokens,) = decoder.generate(PROMPTS[2:3], COUNT)
    prompt = PROMPTS[2]
    persistent = default_plan(decoder.packed.shape, decoder.cache.k.device)
    step = decoder.packed.step(decoder.cache, 1, plan=replace(persistent, form="launches"))
    step.place([prompt[-1]], [len(prompt) - 1], [0])
    found = []
    for _ in range(COUNT):
        step.run()
        found.append(int(step.row.token))
    assert found == tokens
