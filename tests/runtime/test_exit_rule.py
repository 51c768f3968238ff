"""Confidence measures against float64 formulas; thresholds, decay and the explicit never."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from lit_eff.errors import UserError
from lit_eff.runtime.exit_rule import MEASURES, ExitRule

LOGITS = arrays(np.float32, (4, 9), elements=st.floats(-30, 30, width=32))


def reference(measure: str, logits_NV: np.ndarray) -> np.ndarray:
    p_NV = np.sort(softmax(logits_NV.astype(np.float64), axis=-1), axis=-1)
    if measure == "max_probability":
        return p_NV[:, -1]
    if measure == "softmax_response":
        return p_NV[:, -1] - p_NV[:, -2]
    entropy_N = -np.sum(np.where(p_NV > 0, p_NV * np.log(np.maximum(p_NV, 1e-300)), 0), axis=-1)
    return 1 - entropy_N / np.log(p_NV.shape[-1])


@pytest.mark.parametrize("measure", MEASURES)
@given(logits_NV=LOGITS)
def test_confidence_is_the_formula(measure: str, logits_NV: np.ndarray) -> None:
    before = logits_NV.copy()
    confidence_N = ExitRule(measure=measure, thresholds=(0.5,)).confidence(logits_NV)  # type: ignore[arg-type]
    assert confidence_N.dtype == np.float32
    np.testing.assert_allclose(confidence_N, reference(measure, logits_NV), atol=2e-6)
    np.testing.assert_array_equal(logits_NV, before)


@pytest.mark.parametrize("measure", MEASURES)
def test_confidence_of_one_row_equals_its_row_in_a_batch(measure: str) -> None:
    logits_NV = np.random.default_rng(0).normal(size=(6, 1000)).astype(np.float32)
    rule = ExitRule(measure=measure, thresholds=(0.5,))  # type: ignore[arg-type]
    whole_N = rule.confidence(logits_NV)
    assert [rule.confidence(row_V).item() for row_V in logits_NV] == whole_N.tolist()


@pytest.mark.parametrize("measure", MEASURES)
def test_ties_and_certainty(measure: str) -> None:
    rule = ExitRule(measure=measure, thresholds=(0.5,))  # type: ignore[arg-type]
    tie, certain = np.zeros(4, np.float32), np.array([200.0, 0, 0, 0], np.float32)
    assert rule.confidence(certain) == 1.0
    assert rule.confidence(tie) == pytest.approx(0.25 if measure == "max_probability" else 0.0, abs=1e-6)
    two_way = np.array([50.0, 50.0, 0, 0], np.float32)
    if measure == "softmax_response":
        assert rule.confidence(two_way) == 0.0


def test_never_is_not_a_threshold_of_one() -> None:
    """With a decay lambda = 1 lets tokens through later on; None never does."""
    rule = ExitRule(thresholds=(1.0, None, 0.0), decay=4.0, horizon=100)
    steps = np.arange(100)
    assert rule.should_exit(0, 1.0, 0)
    assert rule.should_exit(0, 0.95, steps)[-1]  # threshold about 0.902 by then
    assert not rule.should_exit(1, 1.0, steps).any()
    assert not rule.checks(1)
    assert not rule.checks(3)  # the last exit's threshold may be left out
    assert not rule.should_exit(3, 1.0, 0)


def test_decay_is_equation_5() -> None:
    rule = ExitRule(thresholds=(0.7, 0.99), decay=4.0, horizon=50)
    steps = np.arange(0, 200, 7)
    for e, limit in enumerate((0.7, 0.99)):
        expected = np.clip(0.9 * limit + 0.1 * np.exp(-4.0 * steps / 50), 0, 1)
        np.testing.assert_allclose(rule.threshold(e, steps), expected, rtol=1e-6)
    assert ExitRule(thresholds=(0.7,)).threshold(0, 123) == np.float32(0.7)


def test_scalar_and_array_decisions_agree_at_the_border() -> None:
    """Both sides are float32, so a confidence equal to the threshold exits in either form."""
    rule = ExitRule(thresholds=(0.1,))
    border = np.float32(0.1)
    below = np.nextafter(border, np.float32(0))
    assert rule.should_exit(0, border, 0)
    assert rule.should_exit(0, np.array([border, below]), np.array([0, 1])).tolist() == [True, False]
    assert not rule.should_exit(0, below, 0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"thresholds": (1.5,)}, "1.5"),
        ({"thresholds": (float("nan"),)}, "nan"),
        ({"thresholds": (0.5,), "measure": "cosine"}, "cosine"),
        ({"thresholds": (0.5,), "decay": -1.0}, "-1.0"),
        ({"thresholds": (0.5,), "horizon": 0}, "horizon is 0"),
    ],
)
def test_bad_rules_are_named(settings: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        ExitRule(**settings)
