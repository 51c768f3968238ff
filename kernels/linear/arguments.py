"""The kernels' arguments in groups. A group that is None is a constant to the compiler: the feature is off
and its code gone.

Shapes: N rows, C input channels, O outputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Matrix(NamedTuple):
    """A matrix by its strides."""

    pointer: Any
    stride_row: int
    stride_column: int


class RowNorm(NamedTuple):
    """Gain and shift (C,), contiguous, either of them None, and what is added to the variance.

    Without an epsilon there is no norm. Kernels ask for that, not whether the group is None: Triton 3.6
    cannot compare a group with None that holds a None.
    """

    gain: Any
    shift: Any
    epsilon: float | None


NO_NORM = RowNorm(None, None, None)


class Scales(NamedTuple):
    """Float32 factors of an int8 weight, (O, groups): one for every ``size`` channels of a row."""

    pointer: Any
    stride_row: int
    stride_column: int
    size: int
