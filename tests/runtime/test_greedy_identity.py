"""Greedy identity: a right engine passes, and what breaks it is found and named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lit_eff.runtime import decode
from lit_eff.runtime.greedy_identity import DRAFT_LENGTHS, TOKENS, Mismatch, greedy_identity
from tests.runtime.fakes import TinyTransformer

PROMPTS = [(1, 2, 3), (4,), (0, 5, 6, 2)]


class VariantTransformer(TinyTransformer):
    """Not row-invariant: several rows round otherwise, as in torch's CPU linear (much enlarged)."""

    def head(self, e: int, hidden_TC: NDArray[Any]) -> NDArray[np.float32]:
        logits_TV = super().head(e, hidden_TC)
        return logits_TV + 0.5 * np.cos(np.arange(self.vocab_size)) * (len(hidden_TC) > 1)


def test_a_right_engine_is_identical() -> None:
    runner = TinyTransformer(context=40)
    found = greedy_identity(runner, PROMPTS)
    assert (found.verdict, found.mismatches) == ("identical", ())
    assert found.prompts == len(PROMPTS)
    assert found.runs == len(PROMPTS) * 2 * len(DRAFT_LENGTHS)
    assert found.tokens == found.runs * TOKENS
    assert 0.2 < found.acceptance < 0.95, "drafts should be both kept and rejected"


def test_an_engine_that_is_not_row_invariant_is_refuted() -> None:
    found = greedy_identity(VariantTransformer(context=40), PROMPTS, draft_lengths=(3,))
    assert found.verdict == "refuted"
    assert {one.draft_length for one in found.mismatches} == {3}


def test_the_first_differing_token_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts that are always kept: the first difference is the first draft that should have been rejected."""
    runner = TinyTransformer(context=40)
    expected = []
    for prompt in range(len(PROMPTS)):
        for e in (0, 1):
            tokens = list(PROMPTS[prompt])
            for position in range(TOKENS):
                full, early = (int(runner.full_logits(tokens, exit)[-1].argmax()) for exit in (2, e))
                if full != early and position % 2 == 0:  # drafts of length 1: every other token is drafted
                    expected.append(Mismatch(prompt, runner.exit_layers[e], 1, position))
                    break
                tokens.append(full)
    assert expected
    monkeypatch.setattr(
        decode, "accept_greedy", lambda targets, drafts: (len(drafts), list(targets)[len(drafts)])
    )
    assert list(greedy_identity(runner, PROMPTS, draft_lengths=(1,)).mismatches) == expected
