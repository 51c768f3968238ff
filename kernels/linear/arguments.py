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
    """Gain and shift (C,), contiguous, either of them None, and what is added to the variance."""

    gain: Any
    shift: Any
    epsilon: float


class Scales(NamedTuple):
    """Float32 factors of an int8 weight, (O, groups): one for every ``size`` channels of a row."""

    pointer: Any
    stride_row: int
    stride_column: int
    size: int
