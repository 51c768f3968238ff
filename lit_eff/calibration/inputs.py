"""Levels and losses, checked once for every procedure: a guarantee is void for anything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_eff.calibration.p_values import FloatArray
from lit_eff.errors import UserError

Losses = ArrayLike | Sequence[NDArray[Any]]


def check_level(name: str, value: float) -> None:
    """Raises UserError unless the value is strictly between 0 and 1."""
    if not 0.0 < value < 1.0:
        raise UserError(f"{name} is {value}; expected a number strictly between 0 and 1")


def check_levels(delta: float, epsilon: float) -> None:
    """Raises UserError unless both are strictly between 0 and 1."""
    check_level("delta", delta)
    check_level("epsilon", epsilon)


def check_losses(losses_nK: ArrayLike, name: str = "losses") -> FloatArray:
    """The losses as float64 ``(n, K)``.

    Raises:
        UserError: for another shape, nothing in it, or a value that is NaN or outside [0, 1].
    """
    try:
        losses = np.asarray(losses_nK, np.float64)
    except ValueError:  # rows of different lengths, or text
        raise UserError(f"{name} are no array of numbers; expected (sequences, candidates)") from None
    if losses.ndim != 2 or 0 in losses.shape:
        raise UserError(
            f"{name} have shape {losses.shape}; expected (sequences, candidates), both at least 1"
        )
    bad = np.argwhere(~((losses >= 0.0) & (losses <= 1.0)))  # NaN is neither
    if len(bad):
        row, column = bad[0]
        raise UserError(
            f"{name} hold {losses[row, column]} (sequence {row}, candidate {column}); expected numbers in "
            "[0, 1]: divide by the largest possible loss, and leave out no sequence for its loss"
        )
    return losses


def check_risks(
    losses: Losses, delta: float | Sequence[float], name: str = "losses"
) -> list[tuple[FloatArray, float]]:
    """Each risk's losses ``(n, K)`` with its delta.

    Args:
        losses: an array ``(n, K)``; or of several risks, an array ``(R, n, K)`` or a list of ``(n_r, K)``.
        delta: a number in (0, 1) for all risks, or one for each.

    Raises:
        UserError: as :func:`check_losses`; for a delta out of range, another number of deltas, or risks of
            different numbers of candidates.
    """
    many = isinstance(losses, np.ndarray) and losses.ndim == 3
    if isinstance(losses, Sequence) and losses:
        many = all(isinstance(each, np.ndarray) and each.ndim == 2 for each in losses)
    arrays = [check_losses(each, name) for each in cast(list[Any], losses if many else [losses])]
    deltas = np.atleast_1d(np.asarray(delta, np.float64)).tolist()
    for each in deltas:
        check_level("delta", each)
    if len(deltas) == 1:
        deltas *= len(arrays)
    if len(deltas) != len(arrays):
        raise UserError(f"delta has {len(deltas)} values for {len(arrays)} risks; give one for each")
    widths = {array.shape[1] for array in arrays}
    if len(widths) > 1:
        raise UserError(f"{name} have {sorted(widths)} candidates; each risk needs the same ones")
    return list(zip(arrays, deltas, strict=True))


def check_savings(savings: ArrayLike, count: int) -> FloatArray:
    """The savings as float64 ``(count,)``; raises UserError for another shape, infinity or NaN."""
    values = np.asarray(savings, np.float64)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise UserError(
            f"savings have shape {values.shape}; expected {count} finite numbers, one a candidate"
        )
    return values
