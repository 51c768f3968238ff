"""SwiGLU's launches with their modelled bytes."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch

from lit_eff.kernels.catalogue import Operation
from lit_eff.kernels.swiglu.io_model import backward_traffic, forward_traffic
from lit_eff.kernels.swiglu.kernel import backward_launch, forward_launch
from lit_eff.profiling.modelled import ModelledLaunch

FORWARD_FLOPS, BACKWARD_FLOPS = 5, 11  # an output's; an exponential and a division count one each


@dataclass(frozen=True)
class SwigluCase:
    """``rows`` of ``outputs`` gates and as many ups; both ``packed`` in one tensor's rows, or two tensors."""

    rows: int
    outputs: int
    packed: bool = False
    dtype: str = "float16"


def draw(random: Random) -> SwigluCase:
    dtype = random.choice(("float16", "float32"))
    return SwigluCase(random.randint(1, 40), random.randint(1, 300), random.random() < 0.5, dtype)


def launches(case: SwigluCase, device: torch.device, capability: int) -> list[ModelledLaunch]:
    """The forward and the backward of the same gates."""
    dtype = getattr(torch, case.dtype)

    def halves() -> tuple[torch.Tensor, torch.Tensor]:
        if case.packed:
            gate, up = torch.randn(case.rows, 2 * case.outputs, dtype=dtype, device=device).chunk(2, dim=1)
            return gate, up
        gate, up = (torch.randn(case.rows, case.outputs, dtype=dtype, device=device) for _ in range(2))
        return gate, up

    (gate_NF, up_NF), (dgate_NF, dup_NF) = halves(), halves()
    out_NF, dout_NF = (torch.randn(case.rows, case.outputs, dtype=dtype, device=device) for _ in range(2))
    elements, size = case.rows * case.outputs, dtype.itemsize
    return [
        ModelledLaunch(
            forward_launch(gate_NF, up_NF, out_NF),
            forward_traffic(case.rows, case.outputs, size, packed=case.packed),
            FORWARD_FLOPS * elements,
        ),
        ModelledLaunch(
            backward_launch(dout_NF, gate_NF, up_NF, dgate_NF, dup_NF),
            backward_traffic(case.rows, case.outputs, size, packed=case.packed),
            BACKWARD_FLOPS * elements,
        ),
    ]


OPERATIONS = (
    Operation(
        name="swiglu",
        case=SwigluCase,
        small=(
            SwigluCase(1, 1),
            SwigluCase(3, 17),
            SwigluCase(3, 17, dtype="float32"),
            SwigluCase(5, 16, packed=True),
            SwigluCase(5, 31, packed=True, dtype="float32"),
            SwigluCase(1, 2048),
            SwigluCase(1, 2049),
            SwigluCase(2, 5000, packed=True),
            SwigluCase(130, 16),
            SwigluCase(129, 33, packed=True),
            SwigluCase(64, 256),
            SwigluCase(7, 1024, dtype="float32"),
        ),
        typical=SwigluCase(8192, 5632, packed=True, dtype="bfloat16"),
        draw=draw,
        launches=launches,
    ),
)
