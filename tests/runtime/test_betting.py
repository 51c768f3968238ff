"""The betting test: false alarms within alpha on every kind of stream, true ones soon; its arithmetic.

Shapes: S streams.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from lit_eff.errors import UserError
from lit_eff.runtime.betting import FRACTIONS_J, RiskTest, first_stakes, log_wealth, play

DELTA = 0.1
Draw = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # means (S,), rng -> losses (S,)


def binary(mean_S: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (rng.random(len(mean_S)) < mean_S).astype(float)


def continuous(mean_S: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.beta(0.5, 0.5 * (1 - mean_S) / mean_S)


def shares(mean_S: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As of 16 tokens after a divergence somewhere; mean share 17/32 where a sequence diverges."""
    share_S = rng.integers(1, 17, len(mean_S)) / 16
    return np.where(rng.random(len(mean_S)) < mean_S * 32 / 17, share_S, 0.0)


def narrow(mean_S: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return mean_S * rng.integers(0, 3, len(mean_S))


def at_the_limit(t: int, past_S: np.ndarray) -> np.ndarray:
    return np.full(len(past_S), DELTA)


def drifting(t: int, past_S: np.ndarray) -> np.ndarray:
    """Slow waves that touch the limit, and lower after a loss above it: means that depend on the past."""
    wave = DELTA * (1 - 0.3 * (1 + math.sin(t / 60)))
    return np.where(past_S > DELTA, 0.7 * wave, wave)


def alarms(
    draw: Draw, means: Callable[..., np.ndarray], streams: int, steps: int, alpha: float
) -> np.ndarray:
    """Number of losses until the alarm, ``(S,)``; ``inf`` where there was none."""
    rng = np.random.default_rng(20240229)
    stakes_SJ, past_S = np.tile(first_stakes(), (streams, 1)), np.zeros(streams)
    at_S = np.full(streams, np.inf)
    for t in range(steps):
        past_S = draw(means(t, past_S), rng)
        stakes_SJ = play(stakes_SJ, past_S, t, DELTA)
        raised_S = log_wealth(stakes_SJ, t + 1) >= -math.log(alpha)
        at_S[raised_S & np.isinf(at_S)] = t + 1
    return at_S


def false_alarms_are_rare(draw: Draw, means: Callable[..., np.ndarray], streams: int, alpha: float) -> None:
    false = int(np.isfinite(alarms(draw, means, streams, 2000, alpha)).sum())
    lower = 0.0 if false == 0 else float(beta.ppf(0.05, false, streams - false + 1))
    assert lower <= alpha, f"{false} of {streams} streams alarm at alpha {alpha}"


NULLS = [(draw, means) for draw in (binary, continuous, shares, narrow) for means in (at_the_limit, drifting)]


@pytest.mark.parametrize(("draw", "means"), NULLS)
def test_false_alarms(draw: Draw, means: Callable[..., np.ndarray]) -> None:
    false_alarms_are_rare(draw, means, 400, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
@pytest.mark.parametrize(("draw", "means"), NULLS)
def test_false_alarms_in_many_streams(draw: Draw, means: Callable[..., np.ndarray], alpha: float) -> None:
    false_alarms_are_rare(draw, means, 4000, alpha)


def relative_entropy(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def best_growth(risk: float) -> float:
    """Nats a 0/1 loss is worth to the best size of the grid."""
    up, down = np.log1p(FRACTIONS_J * (1 / DELTA - 1)), np.log1p(-FRACTIONS_J)
    return float((risk * up + (1 - risk) * down).max())


@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_twice_the_risk_is_noticed_about_as_soon_as_can_be(alpha: float) -> None:
    """No test of level alpha needs fewer than ``ln(1/alpha) / KL`` losses on average (Wald); the mixture
    holds 1 / 2J of its capital in the best size from the first loss on, which bounds its median time."""
    at_S = alarms(binary, lambda t, past_S: np.full(len(past_S), 2 * DELTA), 500, 1000, alpha)
    median, ideal = float(np.median(at_S)), math.log(1 / alpha) / relative_entropy(2 * DELTA, DELTA)
    assert median <= (math.log(1 / alpha) + math.log(2 * len(FRACTIONS_J))) / best_growth(2 * DELTA)
    assert median <= 1.5 * ideal
    assert np.isfinite(at_S).all()


def test_a_long_time_of_low_risk_does_not_hide_a_change() -> None:
    """The capital that waited for the change has lost nothing: it costs ``ln k (k + 1)`` nats."""
    before, alpha = 1000, 0.01
    at_S = alarms(
        binary,
        lambda t, past_S: np.full(len(past_S), DELTA / 2 if t < before else 2 * DELTA),
        500,
        2000,
        alpha,
    )
    evidence = math.log(len(FRACTIONS_J) * before * (before + 1) / alpha)
    assert before < np.median(at_S) <= before + evidence / best_growth(2 * DELTA)


def test_wealth_by_hand() -> None:
    """After a loss of 1 at delta 1/4 the size 2^-j has gained 3 * 2^-j on the half at stake."""
    test = RiskTest(delta=0.25, alpha=0.05)
    assert test.log_wealth == pytest.approx(0.0, abs=1e-15)
    test.update(1.0)
    assert math.exp(test.log_wealth) == pytest.approx(1 + 3 * (1 - 1 / 256) / 8 / 2, rel=1e-14)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=12), st.sampled_from([0.125, 0.25, 0.5]))
def test_wealth_is_the_mixture_it_is_said_to_be(eighths: list[int], delta: float) -> None:
    """Every size from every beginning, in exact arithmetic."""
    limit, losses, wealth = Fraction(delta), [Fraction(x, 8) for x in eighths], Fraction(0)
    for j in range(1, 9):
        nu = Fraction(1, 2**j) / limit
        for k in range(1, len(losses) + 1):
            growth = math.prod((1 + nu * (x - limit) for x in losses[k - 1 :]), start=Fraction(1))
            wealth += growth / (k * (k + 1)) / 8
    wealth += Fraction(1, len(losses) + 1)
    test = RiskTest(delta=delta, alpha=0.01)
    raised = [test.update(float(x)) for x in losses]
    assert test.log_wealth == pytest.approx(math.log(wealth), abs=1e-12)
    assert sum(raised) == test.alarm
    assert test.mean == pytest.approx(float(sum(losses) / len(losses)))


def test_the_alarm_comes_once_and_stays() -> None:
    test = RiskTest(delta=0.1, alpha=0.05)
    raised = [test.update(1.0) for _ in range(20)] + [test.update(0.0) for _ in range(500)]
    assert sum(raised) == 1
    assert test.alarm
    assert test.alarm_at == raised.index(True) + 1
    assert test.log_wealth < math.log(20)


def uncovered(draw: Draw, means: Callable[..., np.ndarray], streams: int, steps: int, alpha: float) -> int:
    """Streams in which some interval ever misses the mean of the conditional means so far."""
    rng = np.random.default_rng(7)
    missed = 0
    for _ in range(streams):
        test, past_S, expected, outside = RiskTest(DELTA, alpha), np.zeros(1), 0.0, False
        for t in range(steps):
            mean_S = means(t, past_S)
            expected += float(mean_S[0])
            past_S = draw(mean_S, rng)
            test.update(float(past_S[0]))
            low, high = test.interval()
            outside |= not low <= expected / (t + 1) <= high
        missed += outside
    return missed


@pytest.mark.parametrize("draw", [binary, continuous])
def test_intervals_cover_a_drifting_mean_at_all_times(draw: Draw) -> None:
    missed = uncovered(draw, drifting, 40, 300, 0.2)
    assert missed == 0 or beta.ppf(0.05, missed, 40 - missed + 1) <= 0.2


@pytest.mark.slow
@pytest.mark.parametrize(("draw", "means"), NULLS)
def test_intervals_cover_in_many_streams(draw: Draw, means: Callable[..., np.ndarray]) -> None:
    missed = uncovered(draw, means, 600, 1000, 0.1)
    assert missed == 0 or beta.ppf(0.05, missed, 600 - missed + 1) <= 0.1


def test_intervals_by_hand_and_as_narrow_as_said() -> None:
    test = RiskTest(DELTA, 0.05)
    assert test.interval() == (0.0, 1.0)
    test.update(1.0)  # V = 1/4: at rate 1/2, (ln 400 + (ln 2 - 1/2) / 4) * 2 > 1
    assert test.squares == 0.25
    assert test.interval() == (0.0, 1.0)
    rng = np.random.default_rng(0)
    for loss in binary(np.full(20_000, 0.1), rng):
        test.update(float(loss))
    low, high = test.interval()
    normal = 2 * 1.96 * math.sqrt(0.1 * 0.9 / 20_000)
    assert low < 0.1 < high
    # sqrt(2 ln 400 V) for 1.96 sqrt(V), and what the grid of rates may cost.
    assert high - low < 1.07 * math.sqrt(2 * math.log(400)) / 1.96 * normal


@given(st.lists(st.floats(0, 1), max_size=30), st.lists(st.floats(0, 1), max_size=30))
def test_state_survives_json(before: list[float], after: list[float]) -> None:
    test = RiskTest(delta=0.3, alpha=0.05)
    for loss in before:
        test.update(loss)
    again = RiskTest.from_dict(json.loads(json.dumps(test.to_dict(), allow_nan=False)), delta=0.3, alpha=0.05)
    for loss in after:
        assert test.update(loss) == again.update(loss)
    assert again.to_dict() == test.to_dict()
    assert again.interval() == test.interval()


def test_bad_input_is_refused() -> None:
    for loss in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="expected a number in"):
            RiskTest(0.1, 0.05).update(loss)
    with pytest.raises(UserError, match="alpha is 0"):
        RiskTest(0.1, 0)
    with pytest.raises(UserError, match="delta is 1"):
        RiskTest(1, 0.05)
    with pytest.raises(ValueError, match="1 stakes"):
        RiskTest.from_dict({**RiskTest(0.1, 0.05).to_dict(), "log_stakes": [0.0]}, delta=0.1, alpha=0.05)
