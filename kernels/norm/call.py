"""The tile of a norm's kernels, and rows as they take them.

A row is added up by `tl.sum`, whose order is the tile's layout: the same for every row and every number of
rows, as long as Triton compiles one kernel for them. So tile and warps follow from the width alone, and
whatever else Triton specialises a kernel for (alignment of pointers and strides) is made to as well.

Shapes: N rows, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_CHANNELS = 16_384
TILE = 4096  # elements, where a row has no more
MAX_ROWS = 16
MAX_PROGRAMS = 512  # of the backward: as many partial sums, so that these too are the same on every device
ALIGNMENT = 16  # bytes of a pointer, and what a stride is divisible by, that Triton specialises for


@dataclass(frozen=True)
class Tile:
    """``rows`` whole rows, padded to ``block`` channels."""

    rows: int
    block: int

    @property
    def forward_warps(self) -> int:
        return max(1, min(self.rows * self.block // 1024, 16))

    @property
    def backward_warps(self) -> int:
        return max(1, min(self.rows * self.block // 512, 16))

    def programs(self, rows: int) -> int:
        return -(-rows // self.rows)


def tile_of(channels: int) -> Tile:
    block = max(16, 1 << (channels - 1).bit_length())
    return Tile(max(1, min(TILE // block, MAX_ROWS)), block)


def backward_programs(tile: Tile, rows: int) -> int:
    """Each takes as many tiles as the others, in a row; the last ones maybe fewer."""
    tiles = tile.programs(rows)
    each = -(-tiles // MAX_PROGRAMS)
    return -(-tiles // each)


def packed(vector: Tensor | None) -> Tensor | None:
    """Contiguous and aligned."""
    if vector is None or (vector.is_contiguous() and vector.data_ptr() % ALIGNMENT == 0):
        return vector
    return vector.clone(memory_format=torch.contiguous_format)


def packed_rows(x_NC: Tensor) -> tuple[Tensor, int]:
    """Rows and their stride, aligned just as contiguous rows of this width are; copied if they are not."""
    rows, channels = x_NC.shape
    stride = channels if rows == 1 else x_NC.stride(0)
    alike = (stride % ALIGNMENT == 0) == (channels % ALIGNMENT == 0)
    side_by_side = channels == 1 or x_NC.stride(1) == 1
    if alike and side_by_side and x_NC.data_ptr() % ALIGNMENT == 0:
        return x_NC, stride
    return x_NC.clone(memory_format=torch.contiguous_format), channels
