"""Learning-rate schedules at their corners and in between."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_eff.errors import UserError
from lit_eff.training.schedules import Schedule


def test_cosine() -> None:
    schedule = Schedule("cosine", warmup=0.1, final_ratio=0.1)
    assert [schedule.factor(step, 100) for step in range(10)] == pytest.approx([i / 10 for i in range(1, 11)])
    assert schedule.factor(10, 100) == 1.0
    assert schedule.factor(55, 100) == pytest.approx(0.1 + 0.9 / 2)
    assert schedule.factor(32, 100) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 22 / 90)))
    assert schedule.factor(100, 100) == pytest.approx(0.1)
    assert schedule.factor(120, 100) == pytest.approx(0.1)  # a run that goes on past its length


def test_wsd_is_flat_then_falls_as_one_minus_root() -> None:
    schedule = Schedule("wsd", warmup=0.05, decay=0.25, final_ratio=0.0)
    assert {schedule.factor(step, 200) for step in range(9, 151)} == {1.0}
    assert schedule.factor(0, 200) == pytest.approx(0.1)
    for step in (151, 170, 199):
        assert schedule.factor(step, 200) == pytest.approx(1 - math.sqrt((step - 150) / 50))


def test_constant_only_warms_up() -> None:
    schedule = Schedule("constant", warmup=0.5)
    assert [schedule.factor(step, 4) for step in range(5)] == [0.5, 1.0, 1.0, 1.0, 1.0]


@given(
    kind=st.sampled_from(["cosine", "wsd", "constant"]),
    warmup=st.floats(0, 1),
    decay=st.floats(0, 1),
    final_ratio=st.floats(0, 1),
    max_steps=st.integers(1, 500),
)
def test_never_above_the_peak_nor_below_the_end_and_rises_before_it_falls(
    kind: str, warmup: float, decay: float, final_ratio: float, max_steps: int
) -> None:
    if kind == "wsd" and warmup + decay > 1:
        with pytest.raises(UserError, match="overlap"):
            Schedule(kind, warmup, decay, final_ratio)
        return
    schedule = Schedule(kind, warmup, decay, final_ratio)
    factors = [schedule.factor(step, max_steps) for step in range(max_steps)]
    assert all(0.0 <= factor <= 1.0 + 1e-12 for factor in factors)
    assert factors[0] > 0 or final_ratio == 0
    peak = factors.index(max(factors))
    assert all(a <= b + 1e-12 for a, b in pairwise(factors[: peak + 1]))
    assert all(a >= b - 1e-12 for a, b in pairwise(factors[peak:]))
    if max_steps > 1 and round(warmup * max_steps) < max_steps:
        assert min(factors[peak:]) >= final_ratio - 1e-12


def test_bad_fractions_are_named() -> None:
    with pytest.raises(UserError, match=r"schedule\.warmup is 1\.5"):
        Schedule(warmup=1.5)
