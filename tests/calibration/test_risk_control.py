"""Conformal risk control in expectation, and upper confidence bounds: definitions, coverage, coincidences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lit_eff.calibration import conformal_risk_control, learn_then_test, upper_confidence_bound
from lit_eff.calibration.p_values import P_VALUES, wsr_p_value
from lit_eff.calibration.risk_control import risk_interval
from lit_eff.errors import UserError

LOSSES = arrays(np.float64, st.tuples(st.integers(20, 40), st.integers(1, 5)), elements=st.floats(0, 1))


@given(LOSSES, st.floats(0.05, 0.95))
def test_conformal_risk_control_is_its_definition(losses: np.ndarray, delta: float) -> None:
    n, size = losses.shape
    worst = [[losses[i, : k + 1].max() for k in range(size)] for i in range(n)]
    bounds = n / (n + 1) * np.mean(worst, axis=0) + 1 / (n + 1)
    result = conformal_risk_control(losses, delta=delta)
    np.testing.assert_allclose(result.bounds, bounds, rtol=1e-12)
    within = [k for k in range(size) if result.bounds[k] <= delta]
    assert result.selected == (within[-1] if within else None)


def monotone(rng: np.random.Generator, trials: int, n: int) -> np.ndarray:
    """40 columns of one difficulty a sequence."""
    return (rng.random((trials, n, 1)) < np.linspace(0, 0.5, 40)).astype(float)


def bumpy(rng: np.random.Generator, trials: int, n: int) -> np.ndarray:
    """Ten safe columns, then thirty of risk 0.3, each by itself: some always look safe."""
    return (rng.random((trials, n, 40)) < np.repeat([0.05, 0.3], [10, 30])).astype(float)


def boldest_that_looks_safe(losses: np.ndarray, delta: float) -> int | None:
    """Conformal risk control as published, of losses that are not monotone: a mistake."""
    bounds = (losses.sum(axis=0) + 1) / (len(losses) + 1)
    return max(np.flatnonzero(bounds <= delta), default=None)


@pytest.mark.parametrize("draw", [monotone, bumpy])
def test_the_expected_loss_of_a_new_sequence_is_within_delta(draw) -> None:
    """And close to it where losses are monotone: the price is 1/(n + 1) and the grid's step."""
    delta, n, trials = 0.2, 19, 10_000

    def realised(select) -> tuple[float, float]:
        lost = []
        for losses in draw(np.random.default_rng(0), trials, n + 1):
            selected = select(losses[:-1])
            lost.append(0.0 if selected is None else losses[-1, selected])
        return float(np.mean(lost)), float(np.std(lost) / np.sqrt(trials))

    mean, error = realised(lambda losses: conformal_risk_control(losses, delta=delta).selected)
    assert mean <= delta + 3 * error
    if draw is monotone:
        assert mean >= delta - 1 / (n + 1) - 0.5 / 40 - 3 * error
    else:
        mistaken, error = realised(lambda losses: boldest_that_looks_safe(losses, delta))
        assert mistaken > delta + 3 * error


def test_too_few_sequences_are_refused_with_the_number() -> None:
    assert conformal_risk_control(np.zeros((9, 2)), delta=0.1).selected == 1
    with pytest.raises(UserError, match=r"8 sequences .* at least 9 are needed"):
        conformal_risk_control(np.zeros((8, 2)), delta=0.1)


@given(LOSSES, st.floats(0.05, 0.95), st.floats(0.01, 0.5))
def test_the_upper_bound_inverts_the_p_value_and_selects_as_fixed_sequence(
    losses: np.ndarray, delta: float, epsilon: float
) -> None:
    result = upper_confidence_bound(losses, delta=delta, epsilon=epsilon)
    for column, bound in zip(losses.T[:, :, None], result.bounds, strict=True):
        assert wsr_p_value(column, bound - 1e-9, epsilon) > epsilon * (1 - 1e-9)
        assert bound == 1.0 or wsr_p_value(column, bound + 1e-9, epsilon) <= epsilon
    if np.abs(result.bounds - delta).min() > 1e-9:
        ltt = learn_then_test(losses, delta=delta, epsilon=epsilon, p_value="wsr")
        assert result.selected == ltt.selected


@pytest.mark.parametrize("n", [50, 400])
def test_the_bound_covers_the_true_risk(n: int) -> None:
    rng, epsilon, trials = np.random.default_rng(2), 0.1, 2000
    binary, smooth = rng.random((n, trials)) < 0.1, 0.2 * rng.random((n, trials))
    for losses in (binary, smooth):
        bounds = upper_confidence_bound(losses.astype(float), delta=0.5, epsilon=epsilon).bounds
        missed = (bounds < 0.1).mean()
        assert missed <= epsilon + 3 * np.sqrt(epsilon * (1 - epsilon) / trials)
        assert missed > 0.0 or losses is smooth
        assert np.median(bounds) < 0.1 + 1.2 / np.sqrt(n)


@pytest.mark.parametrize("losses", [[[1.5]], [[float("nan")]], [0.5]])
def test_bad_losses_are_refused(losses) -> None:
    with pytest.raises(UserError, match="losses"):
        conformal_risk_control(losses, delta=0.5)
    with pytest.raises(UserError, match="losses"):
        upper_confidence_bound(losses, delta=0.5, epsilon=0.1)


@pytest.mark.parametrize("p_value", P_VALUES)
@settings(max_examples=30)
@given(LOSSES, st.floats(0.05, 0.95), st.floats(0.01, 0.3))
def test_the_upper_bound_is_the_p_value_turned_round(
    p_value: str, losses: np.ndarray, delta: float, level: float
) -> None:
    """At most delta where the p-value is at most the level; and the lower bound is its mirror image."""
    losses = np.round(losses) if p_value == "binomial" else losses
    low, high = risk_interval(losses, level=level, p_value=p_value)
    clear = np.abs(high - delta) > 1e-9
    refuted = P_VALUES[p_value](losses, delta, level) <= level
    np.testing.assert_array_equal((high <= delta)[clear], refuted[clear])
    mirrored = risk_interval(1 - losses, level=level, p_value=p_value)
    np.testing.assert_allclose(low, 1 - mirrored[1], atol=1e-9)
    if p_value != "wsr":  # whose bounds depend on the order, and need not enclose the mean
        mean = losses.mean(axis=0)
        assert np.all((low <= mean + 1e-9) & (mean <= high + 1e-9))


@pytest.mark.parametrize("p_value", ["hoeffding_bentkus", "wsr"])
@pytest.mark.parametrize("concentration", [1.0, 20.0])
def test_each_bound_of_the_risk_misses_it_no_more_often_than_its_level(
    p_value: str, concentration: float
) -> None:
    """Losses in between, of true risks from small to large; both bounds, each candidate by itself."""
    level, trials, n = 0.1, 500, 100
    risk = np.array([0.02, 0.1, 0.3, 0.5, 0.9])
    rng = np.random.default_rng(0)
    losses = rng.beta(concentration * risk, concentration * (1 - risk), (trials, n, len(risk)))
    # Every trial's candidates as columns of their own.
    columns = losses.transpose(1, 0, 2).reshape(n, -1)
    low, high = (bound.reshape(trials, -1) for bound in risk_interval(columns, level=level, p_value=p_value))
    allowed = level + 3 * np.sqrt(level * (1 - level) / trials)
    assert np.all((low > risk).mean(axis=0) <= allowed)
    assert np.all((high < risk).mean(axis=0) <= allowed)
    assert np.all(np.median(high - low, axis=0) < 0.35), "an interval that says nothing would pass too"
