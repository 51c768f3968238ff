"""The exact bytes that the skinny linear requests from HBM, program by program: pure arithmetic.

A lane that a mask switches off is not requested. Tensor names are the kernel's arguments without ``p_``.
Sectors are those of contiguous tensors.

Shapes: N rows, C input channels, O weight rows, F outputs (O, or O / 2 with swiglu), S scale groups.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lit_eff.kernels.linear.plan import ROW_TILE, Plan
from lit_eff.profiling.modelled import STATISTIC_BYTES, Traffic, whole_sectors


@dataclass(frozen=True)
class LinearShape:
    """One product; bytes are those of an element, 0 where there is no such tensor. ``groups``: of scales."""

    rows: int
    channels: int
    weight_rows: int
    input_bytes: int = 2
    weight_bytes: int = 2
    output_bytes: int = 2
    bias_bytes: int = 0
    residual_bytes: int = 0
    gain_bytes: int = 0
    shift_bytes: int = 0
    norm: bool = False
    centered: bool = False
    groups: int = 0
    swiglu: bool = False

    @property
    def outputs(self) -> int:
        """Of a row, as stored."""
        return self.weight_rows // (2 if self.swiglu else 1)

    @property
    def flops(self) -> int:
        """Of the matrix product."""
        return 2 * self.rows * self.weight_rows * self.channels

    @property
    def weight_tensors(self) -> tuple[int, ...]:
        """Bytes of the weight and of what stands beside it: scales, bias, gain and shift."""
        return (
            weight_bytes(self),
            self.weight_rows * self.groups * STATISTIC_BYTES,
            self.weight_rows * self.bias_bytes,
            self.channels * self.gain_bytes,
            self.channels * self.shift_bytes,
        )

    @property
    def product_sectors(self) -> int:
        """Of rows, weight and what stands beside it: what a product reads, once."""
        return whole_sectors(self.rows * self.channels * self.input_bytes, *self.weight_tensors)


def tile_reads(shape: LinearShape, plan: Plan, tile_rows: int) -> Counter[str]:
    """What one program asks for up to the product of its tile; ``tile_rows`` of its rows exist."""
    reads: Counter[str] = Counter()
    row = shape.channels * shape.input_bytes
    reads["x"] += tile_rows * row * (1 + shape.norm + (shape.norm and shape.centered))
    reads["weight"] += plan.block_o * shape.channels * shape.weight_bytes
    reads["gain"] += shape.channels * shape.gain_bytes
    reads["shift"] += shape.channels * shape.shift_bytes
    if shape.groups:
        steps = -(-shape.channels // (plan.lanes * plan.chunk))
        reads["scales"] += steps * plan.lanes * plan.block_o * STATISTIC_BYTES
    reads["bias"] += plan.block_o * shape.bias_bytes
    return reads


def row_tiles(rows: int) -> list[int]:
    """Rows that exist of each row tile."""
    return [min(ROW_TILE, rows - first) for first in range(0, rows, ROW_TILE)]


def linear_traffic(shape: LinearShape, plan: Plan) -> Traffic:
    """Requests of the launch."""
    reads: Counter[str] = Counter()
    writes: Counter[str] = Counter()
    stored = plan.block_o // (2 if shape.swiglu else 1)
    for tile_rows in row_tiles(shape.rows):
        for first in range(0, shape.outputs, stored):
            elements = tile_rows * min(stored, shape.outputs - first)
            reads += tile_reads(shape, plan, tile_rows)
            reads["residual"] += elements * shape.residual_bytes
            writes["out"] += elements * shape.output_bytes
    residual = whole_sectors(shape.rows * shape.outputs * shape.residual_bytes)
    return Traffic(reads, writes, sectors=shape.product_sectors + residual)


def weight_bytes(shape: LinearShape) -> int:
    """The weight, once: what rates of skinny products are quoted on."""
    return shape.weight_rows * shape.channels * shape.weight_bytes
