"""The loss of a certificate on one prompt, against decoding by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lit_eff.errors import UserError
from lit_eff.runtime.confidence import LOGIT_MEASURES
from lit_eff.runtime.decode import GenerateRequest, generate
from lit_eff.runtime.exit_rule import ExitRule
from lit_eff.runtime.risk import DISAGREEMENT, Comparison, compare
from tests.runtime.fakes import TinyTransformer

RULE = ExitRule(thresholds=(0.5, 0.3), measure="max_probability")


def outcome(runner: Any, prompt: list[int], rule: ExitRule, steps: int) -> tuple[Comparison, int]:
    rounds, running = 0, compare(runner, prompt, rule, steps)
    while True:
        try:
            next(running)
        except StopIteration as end:
            return end.value, rounds
        rounds += 1


def test_the_loss_is_the_share_of_tokens_that_differ() -> None:
    runner, losses = TinyTransformer(seed=3), []
    for seed in range(12):
        prompt = np.random.default_rng(seed).integers(0, 7, 5).tolist()
        both = []
        for mode in ("autoregressive", "certified"):
            request = GenerateRequest(tuple(prompt), max_tokens=8, mode=mode, exit_rule=RULE)  # type: ignore[arg-type]
            both.append(list(generate(runner, request)))
        full, early = ([one.tokens[0] for one in rounds] for rounds in both)
        comparison, rounds = outcome(runner, prompt, RULE, 8)
        assert comparison.loss == np.mean(np.array(full) != np.array(early))
        assert comparison.exits == tuple(one.exit_index for one in both[1])
        assert rounds == 16
        losses.append(comparison.loss)
    assert 0 < np.mean(losses) < 1, "the case should be neither trivial outcome"


def test_a_rule_that_never_exits_loses_nothing() -> None:
    comparison, _ = outcome(TinyTransformer(), [1, 2], ExitRule(thresholds=(None, None)), 6)
    assert comparison == Comparison(0.0, (2,) * 6)


def test_disagreement_by_hand() -> None:
    tokens_KBN = np.array([[[1, 2, 3, 4], [5, 5, 5, 5]], [[1, 2, 0, 0], [5, 5, 5, 5]]])
    assert DISAGREEMENT.of_rules(tokens_KBN).tolist() == [[0.0, 0.5], [0.0, 0.0]]


def test_a_prompt_without_room_is_refused_before_anything_runs() -> None:
    runner = TinyTransformer(context=10)
    with pytest.raises(UserError, match="7 tokens, which leaves no room for 4 more in the context of 10"):
        next(compare(runner, [1] * 7, RULE, 4))
    assert not runner.segment_calls
    outcome(runner, [1] * 7, RULE, 3)


def test_rounds_tell_the_confidence_wherever_the_rule_was_asked() -> None:
    runner, rule = TinyTransformer(seed=3), ExitRule(thresholds=(None, 0.9), measure="max_probability")
    request = GenerateRequest((1, 2, 3), max_tokens=12, mode="certified", exit_rule=rule)
    tokens, left = [1, 2, 3], set()
    for one in generate(runner, request):
        (e, confidence), *rest = one.confidences
        assert (e, rest) == (1, [])
        assert confidence == pytest.approx(
            float(LOGIT_MEASURES[rule.measure](runner.full_logits(tokens, 1)[-1])), abs=1e-6
        )
        assert (one.exit_index == 1) == (confidence >= 0.9)
        left.add(one.exit_index)
        tokens += one.tokens
    assert left == {1, 2}
