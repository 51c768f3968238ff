"""Other guarantees than Learn then Test's: risk control in expectation, and upper bounds of the risk.

Shapes: n sequences, K candidates from the most conservative to the boldest, in an order fixed beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_eff.calibration.inputs import check_level, check_levels, check_losses
from lit_eff.calibration.p_values import FloatArray, find_p_value, greatest_wealth, wsr_bets
from lit_eff.calibration.procedures import fixed_sequence
from lit_eff.errors import UserError

HALVINGS = 50  # of [0, 1]: an error of 1e-15


@dataclass(frozen=True)
class BoundResult:
    """Outcome of :func:`conformal_risk_control` and :func:`upper_confidence_bound`.

    Attributes:
        selected: column of the boldest candidate within delta before the first that is not; ``None``: never
            exit.
        bounds: float64 ``(K,)``, what was compared with delta.
    """

    selected: int | None
    bounds: FloatArray


def _last_within(bounds_K: FloatArray, delta: float) -> BoundResult:
    count = int(fixed_sequence(bounds_K, delta).sum())
    return BoundResult(count - 1 if count else None, bounds_K)


def conformal_risk_control(losses_nK: ArrayLike, *, delta: float) -> BoundResult:
    """The boldest candidate with ``E[loss of a new one] <= delta`` (Angelopoulos et al. 2022, theorem 1).

    The expectation is over the calibration sequences too: for a given calibration the risk may exceed delta,
    often nearly half the time. Use :func:`learn_then_test` to be sure with probability ``1 - epsilon``. Needs
    a most conservative choice that loses nothing, which never exiting is.

    The theorem wants each sequence's loss to grow, or stay, from column to column, which that of free-running
    text need not; each loss is replaced by the greatest among the more conservative columns and its own,
    which bounds it and grows. ``bounds`` is ``n/(n + 1) R + 1/(n + 1)`` of those.

    Args:
        losses_nK: in [0, 1], ``(n, K)``.
        delta: level in (0, 1).

    Raises:
        UserError: for losses outside [0, 1]; for so few sequences that none losing anything would not do,
            with the number that would.
    """
    check_level("delta", delta)
    losses = np.maximum.accumulate(check_losses(losses_nK), axis=1)
    n = len(losses)
    needed = math.ceil(1.0 / delta - 1.0 - 1e-9)
    if n < needed:
        raise UserError(
            f"{n} sequences cannot keep the expected risk at {delta:g}, even without a single error: at "
            f"least {needed} are needed; add sequences, or raise delta"
        )
    return _last_within((losses.sum(axis=0) + 1.0) / (n + 1), delta)


def upper_confidence_bound(losses_nK: ArrayLike, *, delta: float, epsilon: float) -> BoundResult:
    """The boldest candidate before the first whose upper bound exceeds delta (Bates et al. 2021, theorem 1).

    **For a risk that grows, or stays, from column to column**: only then does scanning to the first gap keep
    ``P(risk of the selected one <= delta) >= 1 - epsilon`` by that theorem, and each bound holds alone, not
    all at once. What is selected is also what :func:`learn_then_test` selects by ``fixed_sequence`` with
    ``wsr``, which asks for no such thing; call that one where the risk may fall.

    ``bounds`` are those of Waudby-Smith and Ramdas: the least r with a betting p-value of at most epsilon for
    "the risk is at least r", and 1 where there is none.

    Args:
        losses_nK: in [0, 1], ``(n, K)``; in an order of sequences not chosen by their losses.
        delta, epsilon: levels in (0, 1).

    Raises:
        UserError: for losses outside [0, 1].
    """
    check_levels(delta, epsilon)
    losses = check_losses(losses_nK)
    bets = wsr_bets(losses, epsilon)

    def refuted(risk_K: FloatArray) -> NDArray[np.bool_]:
        return greatest_wealth(losses, bets, risk_K) >= 1.0 / epsilon

    return _last_within(_least_refuted(refuted, losses.shape[1]), delta)


def risk_interval(
    losses_nK: ArrayLike, *, level: float, p_value: str = "hoeffding_bentkus"
) -> tuple[FloatArray, FloatArray]:
    """Lower and upper bounds of each candidate's true risk, ``(K,)`` each, for plots and tables.

    Each bound holds with probability ``1 - level`` **for its own candidate and by itself**: both of one hold
    with ``1 - 2 level``, and nothing is said of all candidates at once. The upper bound is the p-value turned
    round, the least r at which "the true risk exceeds r" is refuted at the level, so that it is at most delta
    just where the p-value for delta is at most the level; the lower one is that of ``1 - losses``.

    Args:
        losses_nK: in [0, 1], ``(n, K)``.
        level: in (0, 1).
        p_value: a name in :data:`P_VALUES`, fixed without looking at these losses.

    Raises:
        UserError: for losses outside [0, 1], or ones the p-value is not valid for.
    """
    check_level("level", level)
    losses = check_losses(losses_nK)
    of_columns = find_p_value(p_value)

    def upper(losses: FloatArray) -> FloatArray:
        return _least_refuted(lambda risk_K: of_columns(losses, risk_K, level) <= level, losses.shape[1])

    return 1.0 - upper(1.0 - losses), upper(losses)


def _least_refuted(refuted: Callable[[FloatArray], NDArray[np.bool_]], count: int) -> FloatArray:
    """For each candidate the least risk that is refuted, where all greater ones are; 1 where none is."""
    low, high = np.zeros(count), np.ones(count)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        beyond = refuted(middle)
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return high
