"""Multiple testing: which nulls to reject so that any false rejection has probability at most ``epsilon``.

Columns come from the most conservative candidate to the boldest, in an order fixed before the losses were
seen. Sources: Angelopoulos et al. 2021 (Learn then Test), section 2.3; Holm 1979.

Shapes: K candidates; ``...`` any leading dimensions, such as repeated trials.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_eff.calibration.p_values import FloatArray
from lit_eff.errors import UserError, nearest

BoolArray = NDArray[np.bool_]
SPLIT = "split_fixed_sequence"
STARTS = 4  # of multi_start: few, since each start costs every other one its share of epsilon


def fixed_sequence(p_values: FloatArray, epsilon: float) -> BoolArray:
    """Reject in order while ``p <= epsilon``, stop at the first failure: bool ``(..., K)``, first ones only.

    Every test has the full level: no error is made before the first true null of the order, and rejecting
    that one has probability at most epsilon.
    """
    return np.logical_and.accumulate(p_values <= epsilon, axis=-1)


def multi_start(p_values: FloatArray, epsilon: float, starts: int = STARTS) -> BoolArray:
    """A fixed sequence at ``epsilon / J`` from each of J evenly spread starts: bool ``(..., K)``.

    It gets past a candidate that fails in the middle of the order. Each sequence goes on to the end of the
    order, or its first failure; J is ``starts``, or K if that is less.
    """
    size = p_values.shape[-1]
    count = min(starts, size)
    rejected = np.zeros(p_values.shape, bool)
    for index in range(count):
        first = index * size // count
        rejected[..., first:] |= fixed_sequence(p_values[..., first:], epsilon / count)
    return rejected


def bonferroni(p_values: FloatArray, epsilon: float) -> BoolArray:
    """Reject where ``p <= epsilon / K``: bool ``(..., K)``. Needs no order."""
    return np.asarray(p_values <= epsilon / p_values.shape[-1])


def holm(p_values: FloatArray, epsilon: float) -> BoolArray:
    """Step down from the least p-value, the i-th (from 0) at ``epsilon / (K - i)``: bool ``(..., K)``.

    Needs no order, and rejects all that Bonferroni does.
    """
    size = p_values.shape[-1]
    ascending = np.argsort(p_values, axis=-1, kind="stable")
    small = np.take_along_axis(p_values, ascending, axis=-1) <= epsilon / np.arange(size, 0, -1)
    rejected = np.empty(p_values.shape, bool)
    np.put_along_axis(rejected, ascending, np.logical_and.accumulate(small, axis=-1), axis=-1)
    return rejected


@dataclass(frozen=True)
class Procedure:
    """``reject(p_values, epsilon)``, and among how many tests of K epsilon is divided to begin with."""

    reject: Callable[[FloatArray, float], BoolArray]
    shares: Callable[[int], int]

    def first_level(self, candidates: int, epsilon: float) -> float:
        """What the least p-value of all must not exceed for anything to be rejected."""
        return epsilon / self.shares(candidates)


PROCEDURES: dict[str, Procedure] = {
    "fixed_sequence": Procedure(fixed_sequence, lambda size: 1),
    SPLIT: Procedure(fixed_sequence, lambda size: 1),  # along an order learned elsewhere
    "multi_start": Procedure(multi_start, lambda size: min(STARTS, size)),
    "bonferroni": Procedure(bonferroni, lambda size: size),
    "holm": Procedure(holm, lambda size: size),
}


def find_procedure(name: str) -> Procedure:
    """Raises UserError for a name that is not in :data:`PROCEDURES`."""
    if name not in PROCEDURES:
        raise UserError(f"unknown procedure {name!r}{nearest(name, PROCEDURES)}")
    return PROCEDURES[name]
