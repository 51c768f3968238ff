"""The mechanics of Learn then Test on hand-made cases, several risks, learned orders, and bad input."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from lit_eff.calibration import (
    P_VALUES,
    PROCEDURES,
    choose_measure,
    learn_then_test,
    require_sequences,
    sequences_needed,
)
from lit_eff.errors import UserError


def losses_with_errors(errors: list[int], n: int = 200) -> np.ndarray:
    return (np.arange(n)[:, None] < np.array(errors)[None, :]).astype(float)


def test_public_names_need_no_torch() -> None:
    check = "import sys, lit_eff.calibration; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_needed_sequences() -> None:
    assert sequences_needed(0.02, 0.05, "hoeffding_bentkus") == 149
    assert sequences_needed(0.02, 0.05, "binomial") == 149
    assert sequences_needed(0.02, 0.05, "wsr") == 154
    assert sequences_needed(0.02, 0.05, "hoeffding") == 3745
    assert sequences_needed(0.25, 0.05) == math.ceil(math.log(0.05) / math.log(0.75))
    with pytest.raises(UserError, match="needs over"):
        sequences_needed(1e-9, 0.05)


@pytest.mark.parametrize("p_value", P_VALUES)
@pytest.mark.parametrize("procedure", PROCEDURES)
def test_too_few_sequences_certify_nothing_and_say_how_many_could(p_value: str, procedure: str) -> None:
    options = {"delta": 0.1, "epsilon": 0.05, "p_value": p_value, "procedure": procedure}
    needed = sequences_needed(0.1, 0.05, p_value, procedure, candidates=3)

    def result(n: int):
        learn = {"order_losses": np.zeros((5, 3))} if procedure == "split_fixed_sequence" else {}
        return learn_then_test(np.zeros((n, 3)), **options, **learn)

    short, enough = result(needed - 1), result(needed)
    assert (short.selected, short.n_needed, short.rejected.any()) == (None, needed, False)
    assert (enough.selected, enough.n_needed) == (2, None)
    require_sequences(needed, 0.1, 0.05, p_value, procedure, 3)
    with pytest.raises(UserError, match=f"at least {needed} are needed"):
        require_sequences(needed - 1, 0.1, 0.05, p_value, procedure, 3)


def test_enough_sequences_with_too_many_errors_need_no_number() -> None:
    result = learn_then_test(losses_with_errors([90, 100]), delta=0.2, epsilon=0.1)
    assert (result.selected, result.n_needed) == (None, None)


def test_fixed_sequence_selects_the_last_rejected_before_the_first_failure() -> None:
    result = learn_then_test(losses_with_errors([0, 5, 10, 90, 0, 0]), delta=0.2, epsilon=0.1)
    assert result.selected == 2
    assert result.rejected.tolist() == [True, True, True, False, False, False]
    assert result.p_values[4] <= 0.1  # would pass alone, but stands behind a failure
    assert learn_then_test(losses_with_errors([90, 0, 0]), delta=0.2, epsilon=0.1).selected is None
    assert learn_then_test(losses_with_errors([1, 2, 3]), delta=0.2, epsilon=0.1).selected == 2


@pytest.mark.parametrize(("procedure", "selected"), [("multi_start", 6), ("bonferroni", 6), ("holm", 6)])
def test_others_select_the_boldest_rejected(procedure: str, selected: int) -> None:
    losses = losses_with_errors([0, 5, 90, 95, 5, 6, 7, 90])
    assert learn_then_test(losses, delta=0.2, epsilon=0.1, procedure=procedure).selected == selected


def test_wsr_bets_for_the_level_it_is_compared_with() -> None:
    losses = np.random.default_rng(0).random((100, 5)) * 0.3
    single = P_VALUES["wsr"](losses, 0.2, 0.1 / 5)
    result = learn_then_test(losses, delta=0.2, epsilon=0.1, p_value="wsr", procedure="bonferroni")
    np.testing.assert_array_equal(result.p_values, single)


def test_several_risks_certify_what_all_of_them_do() -> None:
    first, second = losses_with_errors([0, 2, 4, 6, 90]), losses_with_errors([0, 1, 2, 80, 90], n=150)
    both = learn_then_test([first, second], delta=(0.1, 0.2), epsilon=0.1)
    alone = [
        learn_then_test(first, delta=0.1, epsilon=0.1),
        learn_then_test(second, delta=0.2, epsilon=0.1),
    ]
    assert [each.selected for each in alone] == [3, 2]
    assert both.selected == 2
    np.testing.assert_array_equal(both.p_values, np.maximum(alone[0].p_values, alone[1].p_values))
    stacked = learn_then_test(np.stack([first[:150], second]), delta=0.15, epsilon=0.1)
    listed = learn_then_test([first[:150], second], delta=(0.15, 0.15), epsilon=0.1)
    np.testing.assert_array_equal(stacked.p_values, listed.p_values)
    short = learn_then_test([np.zeros((30, 2)), np.zeros((200, 2))], delta=(0.02, 0.2), epsilon=0.05)
    assert (short.selected, short.n_needed) == (None, 149)


def test_a_learned_order_skips_a_bump_and_what_is_dominated() -> None:
    """Column 1 is bad and column 3 saves less than the safer 4, so neither is in the way of 5."""
    errors, savings = [0, 90, 5, 12, 6, 14], [1.0, 2.0, 3.0, 3.5, 4.0, 6.0]
    learn = losses_with_errors(errors)
    options = {"delta": 0.2, "epsilon": 0.1, "savings": savings}
    assert learn_then_test(learn, **options).selected == 0
    calibrate = losses_with_errors([1, 88, 6, 70, 8, 15])
    result = learn_then_test(calibrate, procedure="split_fixed_sequence", order_losses=learn, **options)
    assert result.rejected.tolist() == [True, False, True, False, True, True]
    assert result.selected == 5
    # The greatest saving, not the greatest index; and without savings, the index.
    savings[0] = 7.0
    result = learn_then_test(calibrate, procedure="split_fixed_sequence", order_losses=learn, **options)
    assert (result.selected, result.rejected.sum()) == (0, 1)
    options.pop("savings")
    result = learn_then_test(calibrate, procedure="split_fixed_sequence", order_losses=learn, **options)
    assert result.selected == 5


def test_the_order_of_the_calibration_losses_has_no_say() -> None:
    """Safest on the learning split but failing on the other: the sequence ends there."""
    learn, calibrate = losses_with_errors([0, 5]), losses_with_errors([90, 0])
    result = learn_then_test(
        calibrate, delta=0.2, epsilon=0.1, procedure="split_fixed_sequence", order_losses=learn
    )
    assert result.selected is None


def test_choosing_a_measure_divides_epsilon() -> None:
    losses = {"entropy": losses_with_errors([0, 10, 32]), "top_two_gap": losses_with_errors([0, 12, 90])}
    savings = {"entropy": [0, 1, 3], "top_two_gap": [0, 2, 4]}
    alone = learn_then_test(losses["entropy"], delta=0.2, epsilon=0.1, p_value="binomial")
    assert alone.selected == 2
    assert 0.05 < alone.p_values[2] <= 0.1
    choice = choose_measure(losses, savings, delta=0.2, epsilon=0.1, p_value="binomial")
    assert choice.results["entropy"].selected == 1  # its share of epsilon is too small for the third
    assert choice.measure == "top_two_gap"
    nothing = choose_measure({"a": losses_with_errors([90])}, {"a": [1]}, delta=0.2, epsilon=0.1)
    assert nothing.measure is None
    with pytest.raises(UserError, match="give both for each"):
        choose_measure(losses, {"entropy": [0, 1, 3]}, delta=0.2, epsilon=0.1)


SPLIT = {"procedure": "split_fixed_sequence"}


@pytest.mark.parametrize(
    ("losses", "options", "message"),
    [
        ([[0.0], [1.1]], {}, r"1\.1 \(sequence 1, candidate 0\).* \[0, 1\]: divide"),
        ([[0.0], [-0.1]], {}, r"\[0, 1\]"),
        ([[0.0], [float("nan")]], {}, "hold nan"),
        ([0.0, 1.0], {}, "shape"),
        ([[0.0], [1.0, 0.0]], {}, "no array of numbers"),
        (np.zeros((0, 3)), {}, "shape"),
        ([], {}, "shape"),
        ([[0.5]], {"p_value": "binomial"}, "0 or 1"),
        ([[0.5]], {"p_value": "hoefding"}, "did you mean 'hoeffding'"),
        ([[0.5]], {"procedure": "fixed"}, "fixed_sequence"),
        ([[0.5]], {"delta": 0.0}, "delta is 0.0"),
        ([[0.5]], {"epsilon": 1.0}, "epsilon is 1.0"),
        ([[0.5]], {"delta": (0.1, 0.2)}, "2 values for 1 risks"),
        ([np.zeros((4, 2)), np.zeros((4, 3))], {}, r"\[2, 3\] candidates"),
        ([np.zeros((4, 2)), np.full((4, 2), 2.0)], {}, "hold 2.0"),
        ([[0.5, 0.5]], {"savings": [3, 1]}, "saves 3 and the last 1.*turn the columns round"),
        ([[0.5, 0.5]], {"savings": [3]}, "expected 2 finite numbers"),
        ([[0.5, 0.5]], {"savings": [3, float("nan")]}, "expected 2 finite numbers"),
        ([[0.5]], SPLIT, "needs order_losses"),
        ([[0.5]], {"order_losses": [[0.5]]}, "are for split_fixed_sequence"),
        ([[0.5]], {"order_losses": [[1.5]], **SPLIT}, "order_losses hold 1.5"),
        ([[0.5]], {"order_losses": [[0.5, 0.5]], **SPLIT}, "2 candidates and losses 1"),
    ],
)
def test_bad_input_is_refused(losses, options, message: str) -> None:
    with pytest.raises(UserError, match=message):
        learn_then_test(losses, **{"delta": 0.1, "epsilon": 0.1, **options})
