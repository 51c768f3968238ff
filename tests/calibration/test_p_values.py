"""P-values against exact arithmetic, plain loops, and their definition: P(p <= u) <= u under the null."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lit_eff.calibration.p_values import (
    P_VALUES,
    binomial_p_value,
    candidate_p_values,
    hoeffding_bentkus_p_value,
    hoeffding_p_value,
    wsr_p_value,
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


def wsr_by_the_book(losses: list[float], delta: float, level: float) -> float:
    """Waudby-Smith and Ramdas as Bates et al. write it, one sequence after another."""
    wealth = best = 1.0
    total, squares, variance = 0.5, 0.25, 0.25
    for t, loss in enumerate(losses, start=1):
        stake = min(1.0, math.sqrt(2 * math.log(1 / level) / (len(losses) * variance)))
        wealth *= 1 - stake * (loss - delta)
        best = max(best, wealth)
        total += loss
        squares += (loss - total / (t + 1)) ** 2
        variance = squares / (t + 1)
    return 1 / best


@given(
    arrays(np.float64, st.tuples(st.integers(1, 40), st.integers(1, 3)), elements=st.floats(0, 1)),
    st.floats(0.01, 0.99),
    st.floats(0.001, 0.5),
)
def test_wsr_equals_the_plain_loop(losses: np.ndarray, delta: float, level: float) -> None:
    expected = [wsr_by_the_book(column.tolist(), delta, level) for column in losses.T]
    np.testing.assert_allclose(wsr_p_value(losses, delta, level), expected, rtol=1e-10)


def test_wsr_of_so_much_evidence_that_wealth_overflows_is_zero() -> None:
    assert wsr_p_value(np.zeros((20_000, 1)), 0.9, 0.05) == 0.0


BOUNDARY = {  # losses (T, n, 1) with mean exactly DELTA
    "binary": lambda rng, shape: rng.random(shape) < NULL,
    "shares": lambda rng, shape: np.where(
        rng.random(shape) < NULL * 32 / 17, rng.integers(1, 17, shape) / 16, 0.0
    ),
    "smooth": lambda rng, shape: 2 * NULL * rng.random(shape),
    "nearly constant": lambda rng, shape: NULL + 0.01 * (rng.random(shape) - 0.5),
    "rare and large": lambda rng, shape: np.where(rng.random(shape) < 0.01, 1.0, (NULL - 0.01) / 0.99),
}
NULL = 0.25


# The binomial is for losses of 0 or 1 alone, and refuses any others.
VALID = [
    (name, family) for name in P_VALUES for family in BOUNDARY if name != "binomial" or family == "binary"
]


@pytest.mark.parametrize(("name", "family"), VALID)
@pytest.mark.parametrize("n", [20, 200])
def test_every_p_value_is_super_uniform_on_simulated_losses(name: str, family: str, n: int) -> None:
    """At every u, so that a p-value may be compared with any share of epsilon, whatever wsr bets for."""
    trials = 10_000
    rng = np.random.default_rng(7)
    losses = BOUNDARY[family](rng, (trials, n, 1)).astype(np.float64)
    for level in (0.01, 0.1) if name == "wsr" else (0.1,):
        p = P_VALUES[name](losses, NULL, level)
        for u in (0.001, 0.01, 0.05, 0.1, 0.25, 0.5):
            rate, error = (p <= u).mean(), math.sqrt(u * (1 - u) / trials)
            assert rate <= u + 3 * error, f"P(p <= {u}) is {rate}"


@pytest.mark.parametrize("name", P_VALUES)
def test_leading_dimensions_are_repeated_trials(name: str) -> None:
    losses = (np.random.default_rng(3).random((2, 5, 30, 4)) < 0.2).astype(np.float64)
    together = P_VALUES[name](losses, 0.3, 0.1)
    assert together.shape == (2, 5, 4)
    np.testing.assert_array_equal(together[1, 3], P_VALUES[name](losses[1, 3], 0.3, 0.1))


def test_the_p_value_of_several_risks_is_the_greatest() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((50, 3)) < 0.1, rng.random((80, 3)) < 0.2
    risks = [(first.astype(float), 0.2), (second.astype(float), 0.3)]
    expected = np.maximum(
        binomial_p_value(first.mean(axis=0), 50, 0.2), binomial_p_value(second.mean(axis=0), 80, 0.3)
    )
    np.testing.assert_array_equal(candidate_p_values(risks, "binomial", 0.1), expected)


def test_binomial_refuses_losses_in_between() -> None:
    with pytest.raises(UserError, match="0 or 1"):
        candidate_p_values([(np.array([[0.5]]), 0.1)], "binomial", 0.1)
