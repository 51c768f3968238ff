"""The guarantee itself, by simulation with known true risks near delta: violations stay within epsilon.

A trial draws n sequences, runs the procedure and is a violation when the selected candidate's *true* risk
exceeds delta. The lower 95% Clopper-Pearson bound of the violation rate must not exceed epsilon.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import beta

from lit_eff.calibration.procedures import learn_then_test

DELTA, EPSILON = 0.2, 0.1
Select = Callable[[np.ndarray, str], int | None]


def lower_bound(violations: int, trials: int) -> float:
    return 0.0 if violations == 0 else float(beta.ppf(0.05, violations, trials - violations + 1))


def rising(size: int) -> np.ndarray:
    """Crosses delta half way, in small steps: many candidates just too bold."""
    return np.linspace(DELTA - 0.06, DELTA + 0.06, size)


def edge(size: int) -> np.ndarray:
    """Every candidate is just too bold: any selection is a violation."""
    return np.full(size, DELTA * (1 + 1e-9))


def bump(size: int) -> np.ndarray:
    """Not monotone: safe, then a bump just above delta, then very safe again behind it."""
    risks = np.full(size, 0.02)
    risks[size // 4 : size // 2] = DELTA + 0.005
    return risks


def binary(risks: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """0/1 losses, one difficulty a sequence: candidates move together, as thresholds on one text do."""
    return (rng.random((n, 1)) < risks).astype(float)


def independent(risks: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """0/1 losses, independent across candidates: the most chances for a lucky one."""
    return (rng.random((n, len(risks)), dtype=np.float32) < risks).astype(float)


def shares(risks: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Shares of 16 tokens after a divergence somewhere; mean share 17/32 where a sequence diverges."""
    share = rng.integers(1, 17, (n, 1)) / 16
    return np.where(rng.random((n, 1)) < risks * 32 / 17, share, 0.0)


def ours(losses: np.ndarray, p_value: str) -> int | None:
    return learn_then_test(losses, delta=DELTA, epsilon=EPSILON, p_value=p_value).selected


def violation_rate(
    select: Select, risks, draw, n: int, p_value: str, trials: int
) -> tuple[float, float, int]:
    """(rate, its lower bound, trials that selected anything)."""
    rng = np.random.default_rng(20240229)
    violations = selections = 0
    for _ in range(trials):
        selected = select(draw(risks, n, rng), p_value)
        selections += selected is not None
        violations += selected is not None and risks[selected] > DELTA
    return violations / trials, lower_bound(violations, trials), selections


def check(profile, draw, size: int, n: int, trials: int) -> None:
    p_values = ["hoeffding_bentkus"] if draw is shares else ["hoeffding_bentkus", "binomial"]
    for p_value in p_values:
        risks = profile(size)
        rate, bound, selections = violation_rate(ours, risks, draw, n, p_value, trials)
        assert bound <= EPSILON, (
            f"{p_value}: {rate:.1%} of {trials} trials exceed delta; the budget is {EPSILON:.0%}"
        )
        if profile is not edge and n == 1000:  # a procedure that never selects anything is valid and useless
            assert selections > 0.9 * trials


CASES = pytest.mark.parametrize(
    ("profile", "draw"),
    [(rising, binary), (rising, shares), (edge, independent), (edge, shares), (bump, independent)],
)


@pytest.mark.parametrize("n", [100, 1000])
@pytest.mark.parametrize("size", [10, 20, 100])
@CASES
def test_violations_stay_within_epsilon(profile, draw, size: int, n: int) -> None:
    check(profile, draw, size, n, trials=400)


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 1000])
@pytest.mark.parametrize("size", [10, 20, 100])
@CASES
def test_violations_stay_within_epsilon_over_4000_trials(profile, draw, size: int, n: int) -> None:
    check(profile, draw, size, n, trials=4000)


def first_failing(losses: np.ndarray, p_value: str) -> int | None:
    """A published mistake: return the first candidate that was *not* certified."""
    selected = ours(losses, p_value)
    return 0 if selected is None else min(selected + 1, losses.shape[1] - 1)


def boldest_passing(losses: np.ndarray, p_value: str) -> int | None:
    """Another: skip past failures, each test at full level."""
    result = learn_then_test(losses, delta=DELTA, epsilon=EPSILON, p_value=p_value)
    passing = np.flatnonzero(result.p_values <= EPSILON)
    return int(passing[-1]) if passing.size else None


def naive(losses: np.ndarray, p_value: str) -> int | None:
    """And the plainest: the boldest candidate whose empirical risk is at most delta."""
    passing = np.flatnonzero(losses.mean(axis=0) <= DELTA)
    return int(passing[-1]) if passing.size else None


@pytest.mark.parametrize(
    ("mistake", "profile", "draw"),
    [(first_failing, rising, binary), (naive, rising, binary), (boldest_passing, edge, independent)],
)
def test_the_simulation_catches_known_mistakes(mistake: Select, profile, draw) -> None:
    """Were the procedure wrong in a known way, the check above would fail: this is its power."""
    trials = 400
    _, bound, _ = violation_rate(mistake, profile(20), draw, 1000, "binomial", trials)
    assert bound > EPSILON
