"""The norms' launches with their modelled bytes.

Shapes: N rows, C channels, P programs of the backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from lit_eff.kernels.catalogue import Operation
from lit_eff.kernels.norm.backward import backward_launch
from lit_eff.kernels.norm.call import backward_programs, tile_of
from lit_eff.kernels.norm.forward import forward_launch
from lit_eff.kernels.norm.io_model import NormShape, backward_traffic, forward_traffic
from lit_eff.profiling.modelled import ModelledLaunch

# An element's: square and add, times 1 / deviation; each of centring (sum, difference), gain, shift and
# residual more.
FORWARD_FLOPS = 3
# The row normalised again, then products and sums with dy (5), and its share of each gradient (2).
BACKWARD_FLOPS = 8
EPSILON = 1e-5


@dataclass(frozen=True)
class NormCase:
    """``centered`` is LayerNorm; ``residual`` is its dtype, empty for none."""

    rows: int
    channels: int
    centered: bool = False
    gain: bool = True
    shift: bool = False
    residual: str = ""
    dtype: str = "float16"

    @property
    def forward_flops(self) -> int:
        more = 2 * self.centered + self.gain + self.shift + bool(self.residual)
        return self.rows * self.channels * (FORWARD_FLOPS + more)

    @property
    def backward_flops(self) -> int:
        more = 4 * self.centered + 3 * self.gain + self.shift + bool(self.residual)
        return self.rows * self.channels * (BACKWARD_FLOPS + more)


def draw(random: Random) -> NormCase:
    def coin() -> bool:
        return random.random() < 0.5

    return NormCase(
        random.randint(1, 40),
        random.randint(1, 600),
        coin(),
        coin(),
        coin(),
        residual=random.choice(("", "float16", "float32")),
        dtype=random.choice(("float16", "float32")),
    )


def launches(case: NormCase, device: torch.device, capability: int) -> list[ModelledLaunch]:
    """The forward and the backward of the same rows; the backward reads their sum, if there is a residual."""
    dtype: torch.dtype = getattr(torch, case.dtype)
    beside: torch.dtype | None = getattr(torch, case.residual) if case.residual else None
    total = dtype if beside is None else torch.promote_types(dtype, beside)

    def rows(dtype: torch.dtype) -> Tensor:
        return torch.randn(case.rows, case.channels, dtype=dtype, device=device)

    def vector(wanted: bool) -> Tensor | None:
        return torch.randn(case.channels, dtype=dtype, device=device) if wanted else None

    programs = backward_programs(tile_of(case.channels), case.rows)

    def parts(wanted: bool) -> Tensor | None:
        return torch.empty(programs, case.channels, device=device) if wanted else None

    x_NC, sum_NC = rows(dtype), rows(total)
    residual_NC, dsum_NC = (None, None) if beside is None else (rows(beside), rows(total))
    weight_C, bias_C = vector(case.gain), vector(case.shift)
    apart = beside is not None and beside != dtype
    shape = NormShape(
        case.rows,
        case.channels,
        x_bytes=dtype.itemsize,
        residual_bytes=0 if beside is None else beside.itemsize,
        sum_bytes=total.itemsize,
        out_bytes=total.itemsize,
        weight_bytes=dtype.itemsize * case.gain,
        bias_bytes=dtype.itemsize * case.shift,
    )
    forward = forward_launch(x_NC, residual_NC, weight_C, bias_C, EPSILON, case.centered, rows(total), sum_NC)
    backward = backward_launch(
        rows(total),
        dsum_NC,
        sum_NC,
        weight_C,
        EPSILON,
        case.centered,
        rows(dtype),
        rows(beside) if beside is not None and apart else None,
        parts(case.gain),
        parts(case.shift),
        programs,
    )
    return [
        ModelledLaunch(forward, forward_traffic(shape), case.forward_flops),
        ModelledLaunch(backward, backward_traffic(shape), case.backward_flops),
    ]


OPERATIONS = (
    Operation(
        name="norm",
        case=NormCase,
        small=(
            NormCase(1, 1),
            NormCase(5, 48),
            NormCase(5, 48, gain=False, dtype="float32"),
            NormCase(5, 48, centered=True, shift=True),
            NormCase(5, 48, centered=True, gain=False, dtype="float32"),
            NormCase(5, 100, residual="float16"),
            NormCase(5, 100, centered=True, shift=True, residual="float32"),
            NormCase(37, 64, residual="float16", dtype="float32"),
            NormCase(70, 17, residual="float32", dtype="float32"),
            NormCase(3, 2500, centered=True, shift=True),
            NormCase(33, 130),
            NormCase(2, 5000, residual="float32"),
        ),
        typical=NormCase(8192, 4096, residual="bfloat16", dtype="bfloat16"),
        draw=draw,
        launches=launches,
    ),
)
