"""Multiple testing procedures against plain loops, and over many trials at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_eff.calibration.procedures import PROCEDURES, bonferroni, fixed_sequence, holm, multi_start

P = st.lists(st.one_of(st.floats(0, 1), st.floats(0, 0.05), st.just(0.0)), min_size=1, max_size=30)
LEVEL = st.floats(0.01, 0.99)


def walk(p_values: list[float], first: int, level: float) -> set[int]:
    rejected = set()
    for index in range(first, len(p_values)):
        if p_values[index] > level:
            break
        rejected.add(index)
    return rejected


def as_set(rejected: np.ndarray) -> set[int]:
    return set(np.flatnonzero(rejected).tolist())


@given(P, LEVEL)
def test_fixed_sequence_is_the_plain_loop(p_values: list[float], epsilon: float) -> None:
    assert as_set(fixed_sequence(np.array(p_values), epsilon)) == walk(p_values, 0, epsilon)


@given(P, LEVEL, st.integers(1, 8))
def test_multi_start_walks_from_each_start(p_values: list[float], epsilon: float, starts: int) -> None:
    count = min(starts, len(p_values))
    firsts = [index * len(p_values) // count for index in range(count)]
    assert len(set(firsts)) == count
    expected = set().union(*(walk(p_values, first, epsilon / count) for first in firsts))
    assert as_set(multi_start(np.array(p_values), epsilon, starts)) == expected


@given(P, LEVEL)
def test_holm_is_the_plain_loop_and_rejects_what_bonferroni_does(
    p_values: list[float], epsilon: float
) -> None:
    remaining, rejected = dict(enumerate(p_values)), set()
    while remaining:
        least = min(remaining, key=remaining.__getitem__)
        if remaining[least] > epsilon / len(remaining):
            break
        rejected.add(least)
        del remaining[least]
    assert as_set(holm(np.array(p_values), epsilon)) == rejected
    expected = {index for index, p in enumerate(p_values) if p <= epsilon / len(p_values)}
    assert as_set(bonferroni(np.array(p_values), epsilon)) == expected
    assert expected <= rejected


def test_multi_start_gets_past_a_failure_where_fixed_sequence_stops() -> None:
    p_values = np.array([0.01, 0.9, 0.01, 0.01, 0.9, 0.01, 0.01, 0.04])
    assert as_set(fixed_sequence(p_values, 0.05)) == {0}
    assert as_set(multi_start(p_values, 0.05, 4)) == {0, 2, 3, 6}  # from 0, 2, 4, 6, each at 0.0125


@pytest.mark.parametrize("name", PROCEDURES)
def test_leading_dimensions_are_repeated_trials(name: str) -> None:
    p_values = np.random.default_rng(0).random((3, 40, 7)) ** 4
    together = PROCEDURES[name].reject(p_values, 0.2)
    assert 0 < together.mean() < 1
    for index in np.ndindex(3, 40):
        np.testing.assert_array_equal(together[index], PROCEDURES[name].reject(p_values[index], 0.2))


@pytest.mark.parametrize("name", PROCEDURES)
@given(p_values=P, epsilon=LEVEL)
def test_nothing_is_rejected_if_no_p_value_is_within_the_first_level(
    name: str, p_values: list[float], epsilon: float
) -> None:
    """What sequences_needed relies on: the first level is the least evidence that certifies anything."""
    procedure = PROCEDURES[name]
    level = procedure.first_level(len(p_values), epsilon)
    if min(p_values) > level:
        assert not procedure.reject(np.array(p_values), epsilon).any()
    assert procedure.reject(np.full(len(p_values), level), epsilon).all()
