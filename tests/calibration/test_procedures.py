"""P-values against exact arithmetic, and the mechanics of Learn then Test on hand-made cases."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_eff.calibration.procedures import (
    binomial_p_value,
    fixed_sequence,
    hoeffding_bentkus_p_value,
    hoeffding_p_value,
    learn_then_test,
    sequences_needed,
)
from lit_eff.errors import UserError

DELTAS = ["1/50", "1/10", "1/4", "3/7"]


def exact_binomial_cdf(k: int, n: int, delta: Fraction) -> float:
    """Rational arithmetic throughout: no library, no rounding before the last step."""
    return float(sum(math.comb(n, i) * delta**i * (1 - delta) ** (n - i) for i in range(k + 1)))


def exact_hoeffding_bentkus(total: Fraction, n: int, delta: Fraction) -> float:
    risk = min(total / n, delta)
    exponent = 0.0
    for a, b in ((risk, delta), (1 - risk, 1 - delta)):
        exponent += float(a) * math.log(a / b) if a else 0.0
    bentkus = math.e * exact_binomial_cdf(math.ceil(total), n, delta)
    return min(1.0, math.exp(-n * exponent), bentkus)


@pytest.mark.parametrize("delta", [Fraction(text) for text in DELTAS])
@pytest.mark.parametrize("n", [1, 7, 16, 60, 149])
def test_hoeffding_bentkus_equals_exact_arithmetic(n: int, delta: Fraction) -> None:
    totals = [Fraction(sixteenths, 16) for sixteenths in range(0, 16 * n + 1, max(1, n // 4))]
    risks = np.array([float(total / n) for total in totals])
    expected = [exact_hoeffding_bentkus(total, n, delta) for total in totals]
    np.testing.assert_allclose(
        hoeffding_bentkus_p_value(risks, n, float(delta)), expected, rtol=1e-9, atol=1e-300
    )


@pytest.mark.parametrize("n", [25, 50, 87])
def test_rounding_of_a_mean_counts_no_error_too_many(n: int) -> None:
    """n (k/n) may come out above k in floating point, at these n for several k."""
    delta = Fraction(1, 4)
    errors = range(n // 3)
    assert any(math.ceil(n * (k / n)) > k for k in errors), "this n does not show the problem"
    expected = [exact_binomial_cdf(k, n, delta) for k in errors]
    risks = np.array([np.r_[np.ones(k), np.zeros(n - k)].mean() for k in errors])
    np.testing.assert_allclose(binomial_p_value(risks, n, float(delta)), expected, rtol=1e-9)


def test_hoeffding_by_hand() -> None:
    np.testing.assert_allclose(hoeffding_p_value([0.0, 0.1, 0.3], 50, 0.2), [math.exp(-4), math.exp(-1), 1.0])


@pytest.mark.parametrize("p_value", [hoeffding_bentkus_p_value, hoeffding_p_value, binomial_p_value])
@pytest.mark.parametrize("delta", [float(Fraction(text)) for text in DELTAS])
@pytest.mark.parametrize("n", [10, 100, 1000])
def test_p_values_are_super_uniform_at_the_null_boundary(p_value, delta: float, n: int) -> None:
    """With 0/1 losses of risk exactly delta, P(p <= u) <= u at every u, by enumeration of error counts."""
    p_of_errors = p_value(np.arange(n + 1) / n, n, delta)
    assert (np.diff(p_of_errors) >= -1e-15).all()
    counts = np.arange(n + 1)
    log_pmf = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in counts]
    pmf = np.exp(np.array(log_pmf) + counts * math.log(delta) + (n - counts) * math.log1p(-delta))
    assert (np.cumsum(pmf) <= p_of_errors * (1 + 1e-9) + 1e-12).all()


@pytest.mark.parametrize("n", [20, 200])
def test_p_values_of_fractional_losses_are_super_uniform(n: int) -> None:
    """Shares of 16 tokens, mostly 0 or large as free-running text gives, with mean exactly delta."""
    delta, trials = 0.25, 20_000
    rng = np.random.default_rng(7)
    shares = rng.integers(1, 17, (trials, n)) / 16  # mean 17/32
    losses = np.where(rng.random((trials, n)) < delta * 32 / 17, shares, 0.0)
    for p_value in (hoeffding_bentkus_p_value, hoeffding_p_value):
        p = p_value(losses.mean(axis=1), n, delta)
        for u in (0.01, 0.05, 0.1, 0.25, 0.5):
            rate, error = (p <= u).mean(), math.sqrt(u * (1 - u) / trials)
            assert rate <= u + 3 * error


def test_needed_sequences() -> None:
    assert sequences_needed(0.02, 0.05, "hoeffding_bentkus") == 149
    assert sequences_needed(0.02, 0.05, "binomial") == 149
    assert sequences_needed(0.02, 0.05, "hoeffding") == 3745
    assert sequences_needed(0.25, 0.05) == math.ceil(math.log(0.05) / math.log(0.75))
    with pytest.raises(UserError, match="needs over"):
        sequences_needed(1e-9, 0.05)


@pytest.mark.parametrize(
    ("p_value", "needed"), [("hoeffding_bentkus", 149), ("binomial", 149), ("hoeffding", 3745)]
)
def test_too_few_sequences_certify_nothing_and_say_how_many_could(p_value: str, needed: int) -> None:
    short = learn_then_test(np.zeros((needed - 1, 3)), delta=0.02, epsilon=0.05, p_value=p_value)
    assert (short.selected, short.n_needed, short.rejected.any()) == (None, needed, False)
    enough = learn_then_test(np.zeros((needed, 3)), delta=0.02, epsilon=0.05, p_value=p_value)
    assert (enough.selected, enough.n_needed) == (2, None)


def losses_with_errors(errors: list[int], n: int = 200) -> np.ndarray:
    return (np.arange(n)[:, None] < np.array(errors)[None, :]).astype(float)


def test_selected_is_the_last_rejected_before_the_first_failure() -> None:
    result = learn_then_test(losses_with_errors([0, 5, 10, 90, 0, 0]), delta=0.2, epsilon=0.1)
    assert result.selected == 2
    assert result.rejected.tolist() == [True, True, True, False, False, False]
    assert result.p_values[4] <= 0.1  # would pass alone, but stands behind a failure
    assert learn_then_test(losses_with_errors([90, 0, 0]), delta=0.2, epsilon=0.1).selected is None
    assert learn_then_test(losses_with_errors([1, 2, 3]), delta=0.2, epsilon=0.1).selected == 2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_fixed_sequence_is_the_plain_loop(p_values: list[float], epsilon: float) -> None:
    expected, going = [], True
    for p in p_values:
        going = going and p <= epsilon
        expected.append(going)
    assert fixed_sequence(np.array(p_values), epsilon).tolist() == expected


@pytest.mark.parametrize(
    ("losses", "options", "message"),
    [
        ([[0.0], [1.1]], {}, "outside"),
        ([[0.0], [float("nan")]], {}, "NaN"),
        ([0.0, 1.0], {}, "shape"),
        (np.zeros((0, 3)), {}, "shape"),
        ([[0.5]], {"p_value": "binomial"}, "0 or 1"),
        ([[0.5]], {"p_value": "hoefding"}, "did you mean 'hoeffding'"),
        ([[0.5]], {"procedure": "fixed"}, "fixed_sequence"),
        ([[0.5]], {"delta": 0.0}, "delta is 0.0"),
        ([[0.5]], {"epsilon": 1.0}, "epsilon is 1.0"),
    ],
)
def test_bad_input_is_refused(losses, options, message: str) -> None:
    with pytest.raises(UserError, match=message):
        learn_then_test(losses, **{"delta": 0.1, "epsilon": 0.1, **options})
