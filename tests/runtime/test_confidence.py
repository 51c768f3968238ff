"""Confidence measures against float64 formulas, and the text that decoding by each of them writes."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit, softmax

from lit_eff.runtime.confidence import (
    LOGIT_MEASURES,
    MEASURES,
    READS_NO_LOGITS,
    Measure,
    classifier,
    hidden_saturation,
    patience,
)
from lit_eff.runtime.decode import GenerateRequest, generate
from lit_eff.runtime.exit_rule import ExitRule
from tests.runtime.fakes import TinyTransformer

LOGITS = arrays(np.float32, (4, 9), elements=st.floats(-30, 30, width=32))
STATES = arrays(np.float32, (2, 4, 6), elements=st.floats(-100, 100, width=32))


def reference(measure: str, logits_NV: np.ndarray) -> np.ndarray:
    p_NV = np.sort(softmax(logits_NV.astype(np.float64), axis=-1), axis=-1)
    if measure == "max_probability":
        return p_NV[:, -1]
    if measure == "softmax_response":
        return p_NV[:, -1] - p_NV[:, -2]
    entropy_N = -np.sum(np.where(p_NV > 0, p_NV * np.log(np.maximum(p_NV, 1e-300)), 0), axis=-1)
    return 1 - entropy_N / np.log(p_NV.shape[-1])


@pytest.mark.parametrize("measure", LOGIT_MEASURES)
@given(logits_NV=LOGITS)
def test_confidence_is_the_formula(measure: str, logits_NV: np.ndarray) -> None:
    before = logits_NV.copy()
    confidence_N = LOGIT_MEASURES[measure](logits_NV)
    assert confidence_N.dtype == np.float32
    np.testing.assert_allclose(confidence_N, reference(measure, logits_NV), atol=2e-6)
    np.testing.assert_array_equal(logits_NV, before)


@pytest.mark.parametrize("measure", LOGIT_MEASURES)
def test_confidence_of_one_row_equals_its_row_in_a_batch(measure: str) -> None:
    logits_NV = np.random.default_rng(0).normal(size=(6, 1000)).astype(np.float32)
    whole_N = LOGIT_MEASURES[measure](logits_NV)
    assert [LOGIT_MEASURES[measure](row_V).item() for row_V in logits_NV] == whole_N.tolist()


@pytest.mark.parametrize("measure", LOGIT_MEASURES)
def test_ties_and_certainty(measure: str) -> None:
    tie, certain = np.zeros(4, np.float32), np.array([200.0, 0, 0, 0], np.float32)
    assert LOGIT_MEASURES[measure](certain) == 1.0
    expected = 0.25 if measure == "max_probability" else 0.0
    assert LOGIT_MEASURES[measure](tie) == pytest.approx(expected, abs=1e-6)
    two_way = np.array([50.0, 50.0, 0, 0], np.float32)
    if measure == "softmax_response":
        assert LOGIT_MEASURES[measure](two_way) == 0.0


@given(pair=STATES)
def test_saturation_is_the_cosine(pair: np.ndarray) -> None:
    here_NC, before_NC = pair.astype(np.float64)
    lengths_N = np.linalg.norm(here_NC, axis=1) * np.linalg.norm(before_NC, axis=1)
    cosine_N = np.divide((here_NC * before_NC).sum(1), lengths_N, where=lengths_N > 1e-12, out=np.zeros(4))
    ours_N = hidden_saturation(*pair)
    assert ours_N.dtype == np.float32
    sure = (lengths_N == 0) | (lengths_N > 1e-12)
    np.testing.assert_allclose(ours_N[sure], np.clip(cosine_N, 0, 1)[sure], atol=2e-6)
    assert ((ours_N >= 0) & (ours_N <= 1)).all()


def test_saturation_of_equal_and_opposite_states() -> None:
    x_NC = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    np.testing.assert_allclose(hidden_saturation(7 * x_NC, x_NC), 1.0, atol=1e-6)
    assert (hidden_saturation(-x_NC, x_NC) == 0).all()


def test_classifier_is_the_sigmoid() -> None:
    scores_N = np.array([-1e4, -20.0, -1.0, 0.0, 0.3, 20.0, 1e4])
    np.testing.assert_allclose(classifier(scores_N), expit(scores_N), atol=1e-7)


def test_patience_covers_the_range() -> None:
    np.testing.assert_allclose(patience([0, 1, 2, 3], early_exits=4), [0, 1 / 3, 2 / 3, 1], rtol=1e-6)
    assert patience(0, early_exits=1) == 0.0


def test_every_measure_is_of_one_kind() -> None:
    assert set(MEASURES) == {*LOGIT_MEASURES, *READS_NO_LOGITS, "patience"}


def by_definition(runner: TinyTransformer, rule: ExitRule, prompt: tuple[int, ...], count: int) -> list[Any]:
    """(token, exit) by the definition of each measure, from fresh passes over all tokens so far."""
    tokens, chosen = list(prompt), []
    for t in range(count):
        states, predictions = runner.states(tokens), []
        for e in range(len(runner.exit_layers)):
            predictions.append(int(runner.full_logits(tokens, e)[-1].argmax()))
            if e == len(runner.exit_layers) - 1:
                break
            if rule.measure == "hidden_saturation":
                confidence = hidden_saturation(states[e + 1], states[e])
            elif rule.measure == "classifier":
                confidence = classifier(runner.exit_score(states[e + 1][None]))[0]
            elif rule.measure == "patience":
                streak = 0
                while streak < e and predictions[e - streak - 1] == predictions[e]:
                    streak += 1
                confidence = patience(streak, len(runner.exit_layers) - 1)
            else:
                confidence = LOGIT_MEASURES[rule.measure](runner.full_logits(tokens, e)[-1])
            if rule.should_exit(e, confidence, t):
                break
        chosen.append((predictions[-1], e))
        tokens.append(predictions[-1])
    return chosen


LIMITS: dict[Measure, float] = {
    "softmax_response": 0.4,
    "max_probability": 0.55,
    "entropy": 0.4,
    "hidden_saturation": 0.9,
    "classifier": 0.6,
    "patience": 0.4,
}


@pytest.mark.parametrize("measure", get_args(Measure))
def test_decoding_leaves_where_the_measure_says(measure: Measure) -> None:
    exits = set()
    for seed in range(3):
        runner = TinyTransformer(exit_layers=(1, 2, 3, 4), seed=seed)
        rule = ExitRule(measure, (LIMITS[measure],) * 3)
        rounds = list(
            generate(runner, GenerateRequest((1, 4, 2), max_tokens=16, mode="certified", exit_rule=rule))
        )
        heads = [e for e, _ in runner.head_calls]
        ours = [(one.tokens[0], one.exit_index) for one in rounds]
        assert ours == by_definition(runner, rule, (1, 4, 2), 16)
        exits |= {one.exit_index for one in rounds}
        if measure in READS_NO_LOGITS:  # the output matrix is read once a token
            assert heads == [one.exit_index for one in rounds]
    assert len(exits) >= 3
    assert 3 in exits


def test_patience_counts_the_exits_that_are_asked() -> None:
    """An exit that is never taken predicts nothing."""
    runner = TinyTransformer(exit_layers=(1, 2, 3, 4))
    rule = ExitRule("patience", (0.0, None, 0.4))
    request = GenerateRequest((1, 4, 2), max_tokens=8, mode="certified", exit_rule=rule)
    assert {one.exit_index for one in generate(runner, request)} == {0}
    rule = ExitRule("patience", (None, None, 0.4))
    request = GenerateRequest((1, 4, 2), max_tokens=8, mode="certified", exit_rule=rule)
    assert {one.exit_index for one in generate(runner, request)} == {3}
