"""Learned paths: the Pareto front, and vectors of per-exit thresholds beside one shared threshold."""

from __future__ import annotations

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


def test_relaxation_is_greedy_one_exit_and_one_level_at_a_time() -> None:
    """Two exits of three levels with additive risk and saving, so that the best order is plain."""
    cost = np.array([[0, 0.00, 0.05, 0.20], [0, 0.02, 0.03, 0.30]])  # of exit 0 and 1 at never, 0.9, 0.5, 0.1
    gain = np.array([[0, 0.00, 3.00, 13.0], [0, 2.00, 2.50, 2.60]])
    levels = [NEVER, 0.9, 0.5, 0.1]
    asked = []

    def measure(thresholds_VE: np.ndarray):
        asked.append(thresholds_VE.tolist())
        at = np.array([[levels.index(value) for value in row] for row in thresholds_VE])
        risk = cost[0][at[:, 0]] + cost[1][at[:, 1]]
        return np.tile(risk, (50, 1)), gain[0][at[:, 0]] + gain[1][at[:, 1]]

    path = learn_thresholds(measure, levels[1:], 2, delta=0.1, epsilon=0.1)
    never = NEVER
    assert asked == [
        [[never, never], [0.9, 0.9], [0.5, 0.5], [0.1, 0.1]],
        [[0.9, never], [never, 0.9]],  # exit 0 moves: no risk, though no gain either
        [[0.5, never], [0.9, 0.9]],  # exit 1: 2.00 for 0.02 beats 3.00 for 0.05
        [[0.5, 0.9], [0.9, 0.5]],  # exit 0: 3.00 for 0.05 beats 0.50 for 0.01
        [[0.1, 0.9], [0.5, 0.5]],  # exit 1, as exit 0, a better exchange, would exceed delta
        [[0.1, 0.5], [0.5, 0.1]],  # both exceed delta: the end
    ]
    assert path.measured == 14
    assert path.savings.tolist() == [0.0, 2.0, 2.5, 3.0, 5.0, 5.5]


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
            assert savings[losses.mean(axis=0) <= risk].max() >= saving
    assert path.measured <= len(GRID) + 1 + 3 * (3 * len(GRID))


def layers_saved(text: Tokens) -> tuple[float, float, float]:
    """By the learned path; by one shared threshold, on the same sequences and on both splits together."""
    half = len(text.right) // 2
    learn, calibrate = text.part(0, half), text.part(half, 2 * half)
    path = learn_thresholds(learn.measure, GRID, 3, **LEVELS)
    shared = np.repeat(SHARED_GRID[:, None], 3, axis=1)
    saved = []
    for data, thresholds in ((calibrate, path.thresholds), (calibrate, shared), (text, shared)):
        losses, savings = data.measure(thresholds)
        selected = learn_then_test(losses, **LEVELS).selected
        saved.append(0.0 if selected is None else float(savings[selected]))
    return saved[0], saved[1], saved[2]


@pytest.mark.parametrize("uneven", [True, False])
def test_vectors_save_at_least_as_much_as_one_shared_threshold(uneven: bool) -> None:
    """Where exits differ in what their confidence means, even if the shared threshold gets both splits."""
    texts = [tokens(500, np.random.default_rng(seed), uneven=uneven) for seed in range(6)]
    vectors, shared, shared_with_both = np.mean([layers_saved(text) for text in texts], axis=0)
    assert vectors >= shared
    if uneven:
        assert vectors >= 1.05 * shared_with_both


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
