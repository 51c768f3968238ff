"""The exact bytes that the norms' kernels request from HBM, program by program: pure arithmetic.

Tensor names are the kernels' pointer arguments without ``p_``. Sectors are those of
rows side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

from lit_eff.kernels.norm.call import backward_programs, tile_of
from lit_eff.profiling.modelled import STATISTIC_BYTES, Traffic, whole_sectors


@dataclass(frozen=True)
class NormShape:
    """One call; bytes are those of an element, 0 where there is no such tensor.

    ``sum_bytes`` are those of what is normalised and of the gradients of rows, ``out_bytes`` those of the
    normalised rows and their gradient.
    """

    rows: int
    channels: int
    x_bytes: int = 2
    residual_bytes: int = 0
    sum_bytes: int = 2
    out_bytes: int = 2
    weight_bytes: int = 0
    bias_bytes: int = 0

    @property
    def vectors(self) -> tuple[int, int]:
        """Bytes of gain and shift."""
        return self.channels * self.weight_bytes, self.channels * self.bias_bytes


def forward_traffic(shape: NormShape) -> Traffic:
    elements, programs = shape.rows * shape.channels, tile_of(shape.channels).programs(shape.rows)
    reads = {
        "x": elements * shape.x_bytes,
        "residual": elements * shape.residual_bytes,
        "weight": programs * shape.channels * shape.weight_bytes,
        "bias": programs * shape.channels * shape.bias_bytes,
    }
    writes = {
        "out": elements * shape.out_bytes,
        "sum": elements * shape.sum_bytes if shape.residual_bytes else 0,
    }
    once = (elements * shape.x_bytes, elements * shape.residual_bytes, *shape.vectors)
    return Traffic(reads, writes, sectors=whole_sectors(*once))


def backward_traffic(shape: NormShape) -> Traffic:
    """With gradients of the sum, if there is one, and of gain and shift."""
    elements = shape.rows * shape.channels
    programs = backward_programs(tile_of(shape.channels), shape.rows)
    part = programs * shape.channels
    reads = {
        "x": elements * shape.sum_bytes,
        "dout": elements * shape.out_bytes,
        "dsum": elements * shape.sum_bytes if shape.residual_bytes else 0,
        "weight": part * shape.weight_bytes,
    }
    apart = shape.residual_bytes if shape.residual_bytes != shape.x_bytes else 0
    writes = {
        "dx": elements * shape.x_bytes,
        "dresidual": elements * apart,
        "dgain": part * STATISTIC_BYTES if shape.weight_bytes else 0,
        "dshift": part * STATISTIC_BYTES if shape.bias_bytes else 0,
    }
    once = (reads["x"], reads["dout"], reads["dsum"], shape.channels * shape.weight_bytes)
    return Traffic(reads, writes, sectors=whole_sectors(*once))
