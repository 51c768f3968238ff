"""The guarantee itself, by simulation with known true risks near delta: violations stay within epsilon.

A trial draws n sequences and runs a procedure; it is a violation where any certified candidate's *true* risk
exceeds delta, whichever would be selected. The lower 95% Clopper-Pearson bound of the violation rate must not
exceed epsilon, for every procedure with every p-value that claims it.

Shapes: T trials, n sequences, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy.stats import beta

from lit_eff.bench import calibration
from lit_eff.bench.calibration import compare_thresholds
from lit_eff.bench.calibration_families import binary, shares
from lit_eff.calibration import P_VALUES, PROCEDURES, learn_then_test
from lit_eff.calibration.paths import front

EPSILON = 0.1
LEARNING = 100  # sequences of the split that teaches split_fixed_sequence its order
Draw = Callable[[np.ndarray, int, int, np.random.Generator], np.ndarray]


def lower_bound(violations: int, trials: int, confidence: float = 0.95) -> float:
    """Clopper and Pearson's."""
    return 0.0 if violations == 0 else float(beta.ppf(1 - confidence, violations, trials - violations + 1))


def rising(delta: float, size: int) -> np.ndarray:
    """Crosses delta half way, in small steps: many candidates just too bold."""
    return delta * np.linspace(0.4, 1.6, size)


def edge(delta: float, size: int) -> np.ndarray:
    """Every candidate is just too bold: any rejection is a violation."""
    return np.full(size, delta * (1 + 1e-9))


def bump(delta: float, size: int) -> np.ndarray:
    """Not monotone: safe, then a bump just above delta, then very safe again behind it."""
    risks = np.full(size, 0.1 * delta)
    risks[size // 4 : size // 2] = 1.02 * delta
    return risks


# Independent across candidates: the most chances for a lucky one.
def independent(risks: np.ndarray, trials: int, n: int, rng: np.random.Generator) -> np.ndarray:
    return (rng.random((trials, n, len(risks)), dtype=np.float32) < risks).astype(np.float64)


def continuous(risks: np.ndarray, trials: int, n: int, rng: np.random.Generator) -> np.ndarray:
    return 2.0 * risks * rng.random((trials, n, len(risks)), dtype=np.float32)


def p_value_names(draw: Draw) -> list[str]:
    return [name for name in P_VALUES if name != "binomial" or draw in (binary, independent)]


def orders(risks: np.ndarray, draw: Draw, trials: int, delta: float, rng) -> list[np.ndarray]:
    """What split_fixed_sequence learns, a later column saving more."""
    savings = np.arange(len(risks), dtype=np.float64)
    learning = draw(risks, trials, LEARNING, rng)
    return [front([(losses, delta)], savings, EPSILON, "hoeffding_bentkus") for losses in learning]


def reject(procedure: str, p_values_TK: np.ndarray, learned: list[np.ndarray]) -> np.ndarray:
    if procedure != "split_fixed_sequence":
        return PROCEDURES[procedure].reject(p_values_TK, EPSILON)
    rejected = np.zeros(p_values_TK.shape, bool)
    for row, p_values, order in zip(rejected, p_values_TK, learned, strict=True):
        row[order] = PROCEDURES[procedure].reject(p_values[order], EPSILON)
    return rejected


def simulate(profile, draw: Draw, delta: float, size: int, n: int, trials: int) -> Iterator[tuple]:
    """``(p-value, procedure, rejected (t, K))`` of some trials at a time, t in all being ``trials``."""
    rng, risks = np.random.default_rng(20240229), profile(delta, size)
    chunk = max(1, 2_000_000 // (n * size))
    for start in range(0, trials, chunk):
        count = min(chunk, trials - start)
        losses = draw(risks, count, n, rng)
        learned = orders(risks, draw, count, delta, rng)
        for name in p_value_names(draw):
            p_values = P_VALUES[name](losses, delta, EPSILON)
            for procedure in PROCEDURES:
                yield name, procedure, reject(procedure, p_values, learned)


def check(profile, draw: Draw, delta: float, size: int, n: int, trials: int, confidence: float) -> None:
    unsafe = profile(delta, size) > delta
    violations: dict[tuple[str, str], int] = {}
    certified: dict[tuple[str, str], int] = {}
    for name, procedure, rejected in simulate(profile, draw, delta, size, n, trials):
        key = name, procedure
        violations[key] = violations.get(key, 0) + int((rejected & unsafe).any(axis=1).sum())
        certified[key] = certified.get(key, 0) + int(rejected.any(axis=1).sum())
    assert len(violations) == len(PROCEDURES) * len(p_value_names(draw))
    for key, count in violations.items():
        assert lower_bound(count, trials, confidence) <= EPSILON, (
            f"{key}: {count / trials:.1%} of {trials} trials certify a risk above delta; "
            f"the budget is {EPSILON:.0%}"
        )
        if profile is not edge and n == 1000 and key[0] != "hoeffding":
            # A procedure that never certifies anything is valid and useless.
            assert certified[key] > 0.8 * trials, key


CASES = pytest.mark.parametrize(
    ("profile", "draw"),
    [(rising, binary), (rising, shares), (edge, independent), (edge, continuous), (bump, independent)],
)


@pytest.mark.parametrize("size", [10, 20, 100])
@pytest.mark.parametrize(("n", "delta"), [(100, 0.05), (100, 0.25), (1000, 0.1)])
@CASES
def test_violations_stay_within_epsilon(profile, draw, n: int, delta: float, size: int) -> None:
    """At 99.9%: a thousand combinations are checked, and an exact test spends all of epsilon."""
    check(profile, draw, delta, size, n, trials=400, confidence=0.999)


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 20, 100])
@pytest.mark.parametrize("delta", [0.05, 0.1, 0.25])
@pytest.mark.parametrize("n", [100, 1000])
@CASES
def test_violations_stay_within_epsilon_over_4000_trials(
    profile, draw, n: int, delta: float, size: int
) -> None:
    check(profile, draw, delta, size, n, trials=4000, confidence=0.95)


@pytest.mark.parametrize("p_value", P_VALUES)
def test_several_risks_are_kept_within_epsilon_together(p_value: str) -> None:
    """Either risk of each candidate is just above its delta, and the other far below."""
    trials, rng = 400, np.random.default_rng(0)
    over, far = np.array([0.2 * (1 + 1e-9), 0.02]), np.array([0.02, 0.1 * (1 + 1e-9)])
    violations = 0
    for _ in range(trials):
        losses = [independent(risks, 1, n, rng)[0] for risks, n in ((over, 300), (far, 200))]
        result = learn_then_test(
            losses, delta=(0.2, 0.1), epsilon=EPSILON, p_value=p_value, procedure="bonferroni"
        )
        violations += bool(result.rejected.any())
    assert lower_bound(violations, trials, 0.999) <= EPSILON


@pytest.mark.slow
def test_learned_vectors_of_thresholds_stay_within_epsilon() -> None:
    """The whole of it: searched and ordered on one half, certified on the other, true on unseen texts."""
    trials = 200
    for saved, risk in compare_thresholds(200, trials).values():
        assert lower_bound(int((risk > calibration.DELTA).sum()), trials) <= calibration.EPSILON
        assert (saved > 0).mean() > 0.8


@pytest.mark.parametrize("procedure", PROCEDURES)
def test_learn_then_test_is_what_was_simulated(procedure: str) -> None:
    rng, risks = np.random.default_rng(0), rising(0.25, 20)
    losses, learning = binary(risks, 30, 200, rng), binary(risks, 30, LEARNING, rng)
    savings = np.arange(20.0)
    learned = [front([(each, 0.25)], savings, EPSILON, "hoeffding_bentkus") for each in learning]
    p_values = P_VALUES["hoeffding_bentkus"](losses, 0.25, EPSILON)
    expected = reject(procedure, p_values, learned)
    assert expected.any()
    for each, order_losses, rejected in zip(losses, learning, expected, strict=True):
        options = {"order_losses": order_losses} if procedure == "split_fixed_sequence" else {}
        result = learn_then_test(each, delta=0.25, epsilon=EPSILON, procedure=procedure, **options)
        np.testing.assert_array_equal(result.rejected, rejected)


def first_failing(losses: np.ndarray, p_values: np.ndarray) -> int:
    """A published mistake: return the first candidate that was *not* certified."""
    certified = int(PROCEDURES["fixed_sequence"].reject(p_values, EPSILON).sum())
    return min(certified, len(p_values) - 1)


def boldest_passing(losses: np.ndarray, p_values: np.ndarray) -> int:
    """Another: skip past failures, each test at full level."""
    return max(np.flatnonzero(p_values <= EPSILON), default=-1)


def safest_looking(losses: np.ndarray, p_values: np.ndarray) -> int:
    """Another: order by the calibration losses themselves."""
    least = int(np.argmin(p_values))
    return least if p_values[least] <= EPSILON else -1


def naive(losses: np.ndarray, p_values: np.ndarray) -> int:
    """And the plainest: the boldest candidate whose empirical risk is at most delta."""
    return max(np.flatnonzero(losses.mean(axis=0) <= 0.2), default=-1)


@pytest.mark.parametrize(
    ("mistake", "profile", "draw"),
    [
        (first_failing, rising, binary),
        (naive, rising, binary),
        (boldest_passing, edge, independent),
        (safest_looking, edge, independent),
    ],
)
def test_the_simulation_catches_known_mistakes(mistake, profile, draw: Draw) -> None:
    """Were the procedure wrong in a known way, the check above would fail: this is its power."""
    trials, risks = 400, profile(0.2, 20)
    losses = draw(risks, trials, 1000, np.random.default_rng(0))
    p_values = P_VALUES["binomial"](losses, 0.2, EPSILON)
    selected = [mistake(*each) for each in zip(losses, p_values, strict=True)]
    violations = sum(k >= 0 and risks[k] > 0.2 for k in selected)
    assert lower_bound(violations, trials, 0.999) > EPSILON
