"""Learned paths: the Pareto front, and vectors of per-exit thresholds beside one shared threshold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_eff.bench.calibration import GRID, SHARED_GRID
from lit_eff.bench.calibration_families import Tokens, tokens
from lit_eff.calibration import NEVER, learn_then_test, learn_thresholds, pareto_path
from lit_eff.errors import UserError

LEVELS = {"delta": 0.1, "epsilon": 0.05, "p_value": "wsr"}
ERRORS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)), min_size=1, max_size=12)


def losses_with_errors(errors, n: int = 100) -> np.ndarray:
    return (np.arange(n)[:, None] < np.array(errors)[None, :]).astype(float)


@given(ERRORS)
def test_the_path_is_the_pareto_front_from_safest_to_boldest(columns: list[tuple[int, int]]) -> None:
    errors, savings = np.array(columns).T
    path = pareto_path(losses_with_errors(errors), savings, delta=0.2, epsilon=0.1)
    assert (np.diff(errors[path]) >= 0).all()
    assert (np.diff(savings[path]) > 0).all()
    for k in range(len(columns)):  # every candidate has one on the path that is as safe and saves as much
        assert any(errors[j] <= errors[k] and savings[j] >= savings[k] for j in path)


def test_what_looks_equally_safe_is_tested_from_the_least_saving_on() -> None:
    """The boldest of those without errors is there by luck more often than the others."""
    path = pareto_path(losses_with_errors([3, 0, 0, 1, 0]), [9, 4, 1, 2, 3], delta=0.2, epsilon=0.1)
    assert path.tolist() == [2, 4, 1, 0]


@given(ERRORS)
def test_a_path_of_a_path_is_itself(columns: list[tuple[int, int]]) -> None:
    """So that only its candidates need be measured on the calibration split, in any procedure."""
    errors, savings = np.array(columns).T
    path = pareto_path(losses_with_errors(errors), savings, delta=0.2, epsilon=0.1)
    again = pareto_path(losses_with_errors(errors[path]), savings[path], delta=0.2, epsilon=0.1)
    assert again.tolist() == list(range(len(path)))


def test_several_risks_are_weighed_by_how_hard_each_is_to_certify() -> None:
    """Column 0 has the lower mean of both risks, and more of the one with the small delta."""
    first, second = losses_with_errors([4, 1]), losses_with_errors([0, 15])
    path = pareto_path([first, second], [0, 1], delta=(0.05, 0.4), epsilon=0.1)
    assert path.tolist() == [1]
    assert pareto_path([first, second], [0, 1], delta=(0.4, 0.2), epsilon=0.1).tolist() == [0, 1]


def test_the_search_finds_the_front_of_all_vectors_and_measures_none_twice() -> None:
    """Two exits with additive risk and saving, which the first has to give up for the second to go on."""
    levels = np.array([NEVER, 0.9, 0.7, 0.5, 0.3, 0.1])
    cost = np.array([[0.0, 0.02, 0.05, 0.06, 0.09, 0.2], [0.0, 0.01, 0.02, 0.05, 0.3, 0.4]])
    gain = np.array([[0.0, 1.0, 3.0, 5.6, 9.0, 13.0], [0.0, 2.0, 2.5, 2.6, 2.7, 2.8]])
    asked: list[list[list[float]]] = []

    def measure(thresholds_VE: np.ndarray):
        asked.append(thresholds_VE.tolist())
        at = np.array([[levels.tolist().index(value) for value in row] for row in thresholds_VE])
        risk = cost[0][at[:, 0]] + cost[1][at[:, 1]]
        return np.tile(risk, (50, 1)), gain[0][at[:, 0]] + gain[1][at[:, 1]]

    found = learn_thresholds(measure, levels[1:], 2, delta=0.1, epsilon=0.1)
    assert asked[0] == [[level, level] for level in levels], "the shared thresholds first"
    vectors = [tuple(vector) for each in asked for vector in each]
    assert len(vectors) == len(set(vectors)) == found.measured < 36
    for before, each in itertools.pairwise(asked):
        old_VE, new_VE = (np.searchsorted(-levels, -np.array(vectors)) for vectors in (before, each))
        away = np.abs(new_VE[:, None] - old_VE).sum(axis=2)
        assert (away.min(axis=1) == 1).all(), "one level of one exit away"

    every = np.array([(one, other) for one in levels for other in levels])
    losses, savings = measure(every)
    path = pareto_path(losses, savings, delta=0.1, epsilon=0.1)
    path = path[losses[:, path].mean(axis=0) <= 0.1]
    np.testing.assert_array_equal(found.thresholds, every[path])
    np.testing.assert_array_equal(found.savings, savings[path])
    assert tuple(found.thresholds[-1]) == (0.3, 0.9), "not one shared, nor on the way to one"


def test_of_a_long_front_a_hundredth_of_the_saving_apart_the_safest_are_kept() -> None:
    grid = np.linspace(0.999, 0.0, 1000)

    def measure(thresholds_VE: np.ndarray):
        bold = 1.0 - np.minimum(thresholds_VE, 1.0)[:, 0]
        return np.tile(0.05 * bold, (50, 1)), bold

    path = learn_thresholds(measure, grid, 1, delta=0.1, epsilon=0.1)
    assert path.measured == 1001
    assert len(path.thresholds) == 101, "and never exit"
    np.testing.assert_allclose(path.savings[1:], np.arange(100) / 100 + 0.001)


def test_every_risk_limits_the_relaxation() -> None:
    """The first exit costs one risk and the second another; each goes as far as its own delta lets it."""

    def measure(thresholds_VE: np.ndarray):
        early, late = 1.0 - np.minimum(thresholds_VE, 1.0).T
        return [np.tile(early, (50, 1)), np.tile(late, (80, 1))], early + late

    grid = np.arange(9, 0, -1) / 10
    path = learn_thresholds(measure, grid, 2, delta=(0.25, 0.55), epsilon=0.1)
    best = path.thresholds[path.savings <= 0.7 + 1e-9][-1]
    np.testing.assert_allclose(best, [0.8, 0.5])


@pytest.mark.parametrize("uneven", [True, False])
def test_the_path_covers_shared_thresholds_on_the_learning_split(uneven: bool) -> None:
    learn = tokens(100, np.random.default_rng(0), uneven=uneven)
    path = learn_thresholds(learn.measure, GRID, 3, delta=0.1, epsilon=0.05)
    losses, savings = learn.measure(path.thresholds)
    np.testing.assert_array_equal(savings, path.savings)
    shared, saved = learn.measure(np.repeat(GRID[:, None], 3, axis=1))
    for risk, saving in zip(shared.mean(axis=0), saved, strict=True):
        if risk <= 0.1:
            assert savings[losses.mean(axis=0) <= risk].max() >= saving - savings[-1] / 100


def trial(seed: int, uneven: bool, truth: Tokens) -> list[tuple[float, float]]:
    """True layers saved and risk of what is selected: by the learned path, then by one shared threshold on
    the same calibration texts, then by one on those and the learning texts together."""
    text = tokens(500, np.random.default_rng(seed), uneven=uneven, length=16)
    learn, calibrate = text.part(0, 250), text.part(250, 500)
    path = learn_thresholds(learn.measure, GRID[::2], 3, **LEVELS)
    shared = np.repeat(SHARED_GRID[::2, None], 3, axis=1)
    found = []
    for data, thresholds in ((calibrate, path.thresholds), (calibrate, shared), (text, shared)):
        selected = learn_then_test(data.measure(thresholds)[0], **LEVELS).selected
        assert selected is not None
        losses, savings = truth.measure(thresholds[[selected]])
        found.append((float(savings[0]), float(losses.mean())))
    return found


@pytest.mark.parametrize("uneven", [True, False])
def test_vectors_save_at_least_as_much_as_one_shared_threshold(uneven: bool) -> None:
    """In expectation over learning and calibration texts, beyond what chance explains, and as safely.

    Where exits differ in what their confidence means, even if the shared threshold gets both splits. The
    truth is what 4,000 other texts show.
    """
    truth = tokens(4000, np.random.default_rng(99), uneven=uneven, length=16)
    trials = np.array([trial(seed, uneven, truth) for seed in range(12)])  # (trials, 3, saved and risk)
    vectors, shared, with_both = trials[:, :, 0].T
    for rival in (shared, with_both) if uneven else (shared,):
        more = vectors - rival
        assert more.mean() - 3 * more.std() / np.sqrt(len(more)) > 0
    assert (trials[:, 0, 1] > LEVELS["delta"]).mean() <= LEVELS["epsilon"]


@pytest.mark.parametrize("grid", [[], [0.1, 0.9], [0.9, 0.9], [[0.9]], [0.9, float("nan")]])
def test_a_grid_in_another_order_is_refused(grid) -> None:
    with pytest.raises(UserError, match="expected decreasing numbers"):
        learn_thresholds(
            lambda vectors: (np.zeros((1, len(vectors))), np.zeros(len(vectors))), grid, 2, **LEVELS
        )


@pytest.mark.parametrize(
    ("levels", "message"), [((0.0, 0.1), "delta is 0.0"), ((0.1, 0.0), "epsilon is 0.0")]
)
def test_levels_out_of_range_are_refused(levels, message: str) -> None:
    delta, epsilon = levels
    with pytest.raises(UserError, match=message):
        pareto_path(np.zeros((3, 1)), [1], delta=delta, epsilon=epsilon)
    with pytest.raises(UserError, match=message):
        learn_thresholds(lambda v: (np.zeros((3, len(v))), v[:, 0]), GRID, 1, delta=delta, epsilon=epsilon)


def test_savings_of_another_length_are_refused() -> None:
    with pytest.raises(UserError, match="expected 2 finite numbers"):
        pareto_path(np.zeros((3, 2)), [1, 2, 3], delta=0.1, epsilon=0.1)
