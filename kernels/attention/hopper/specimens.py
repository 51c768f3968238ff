"""The launches of Hopper's attention kernels with their modelled bytes.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import torch
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.kernels.attention.hopper import forward_supported, supported
from lit_eff.kernels.attention.hopper.backward import GRADIENT_TILES, backward_launches
from lit_eff.kernels.attention.hopper.forward import forward_launch
from lit_eff.kernels.attention.hopper.io_model import (
    GradientShape,
    forward_traffic,
    gradient_traffic,
    row_sums_traffic,
    scale_traffic,
)
from lit_eff.kernels.attention.hopper.shapes import forward_shape
from lit_eff.kernels.attention.io_model import AttentionShape, backward_flops, forward_flops
from lit_eff.kernels.attention.specimens import AttentionCase, dense_call
from lit_eff.kernels.catalogue import Operation
from lit_eff.profiling.launch import Launch
from lit_eff.profiling.modelled import ModelledLaunch


def launches(case: AttentionCase, device: torch.device, capability: int) -> list[ModelledLaunch]:
    """Forward, then row sums, gradients, and the rest of dQ.

    Raises:
        UserError: for a case that these kernels do not take, or another device.
    """
    call, shape = _supported_call(case, device, capability)
    out_BTHD = torch.empty_like(call.q_BTHD)
    lse_BHT = torch.empty(_rows(case), device=device)
    launch = forward_launch(call, out_BTHD, lse_BHT)
    traffic = forward_traffic(shape, forward_shape(call), launch.grid[0])
    forward = ModelledLaunch(launch, traffic, forward_flops(shape))
    return [forward, *_backward(case, call, shape, out_BTHD, lse_BHT)] if case.backward else [forward]


def sums_launches(case: AttentionCase, device: torch.device, capability: int) -> list[ModelledLaunch]:
    """The two Triton kernels beside the gradient kernel: its row sums, and what it leaves of dQ.

    They run in the interpreter too, without the gradient kernel between them: the counters and sums that it
    leaves are made up, and the row sums, which start the counters afresh, come last.
    """
    call, shape = _supported_call(case, device, capability)
    out_BTHD, lse_BHT = torch.randn_like(call.q_BTHD), torch.zeros(_rows(case), device=device)
    row_sums, gradient, scale = _backward(case, call, shape, out_BTHD, lse_BHT)
    backward = _gradient_shape(shape, gradient.launch)
    turns = torch.tensor([backward.adders(i_m) for i_m in range(backward.query_blocks)])
    scale.launch.arguments["p_turns"].copy_(turns.repeat(case.batch * case.heads))
    scale.launch.arguments["p_dq_sum"].zero_()
    return [scale, row_sums]


def _gradient_shape(shape: AttentionShape, launch: Launch) -> GradientShape:
    return GradientShape(shape, GRADIENT_TILES[shape.head_dim], launch.arguments["scaled"])


def _supported_call(
    case: AttentionCase, device: torch.device, capability: int
) -> tuple[AttentionCall, AttentionShape]:
    call, shape = dense_call(case, device, capability)
    reason = supported(call) if case.backward else forward_supported(call)
    if capability // 10 != 9:
        reason = f"the device is sm_{capability}, not sm_90"
    if reason is not None:
        raise UserError(f"the Hopper kernels do not take this case: {reason}; use operation 'attention'")
    return call, shape


def _rows(case: AttentionCase) -> tuple[int, int, int]:
    return case.batch, case.heads, case.queries


def _backward(
    case: AttentionCase, call: AttentionCall, shape: AttentionShape, out_BTHD: Tensor, lse_BHT: Tensor
) -> list[ModelledLaunch]:
    dout_BTHD = torch.randn_like(call.q_BTHD)
    dlse_BHT, delta_BHT = (torch.zeros(_rows(case), device=call.q_BTHD.device) for _ in range(2))
    gradients = (torch.empty_like(each) for each in (call.q_BTHD, call.k_BSKD, call.v_BSKD))
    dlse = dlse_BHT if case.lse_gradient else None
    launches = backward_launches(call, out_BTHD, lse_BHT, dout_BTHD, dlse, delta_BHT, *gradients)
    backward = _gradient_shape(shape, launches[1])
    row_sums = row_sums_traffic(backward, lse_gradient=case.lse_gradient)
    elements = call.q_BTHD.numel()
    scaled = scale_traffic(backward)
    models = (
        (row_sums, 2 * elements),
        (gradient_traffic(backward), backward_flops(shape)),
        (scaled, scaled.written_bytes // shape.element_bytes),
    )
    return [ModelledLaunch(launch, *model) for launch, model in zip(launches, models, strict=True)]


def draw(random: Random) -> AttentionCase:
    """Any small case with a backward, which is also what the sums are counted on."""
    kv_heads = random.randint(1, 2)
    queries, keys = random.randint(1, 300), random.randint(1, 300)
    return AttentionCase(
        random.randint(1, 2),
        queries,
        keys,
        kv_heads * random.randint(1, 3),
        kv_heads,
        random.choice((64, 128)),
        causal=random.random() < 0.5,
        lse_gradient=random.random() < 0.5,
        dtype="float16",
    )


SMALL = (
    AttentionCase(1, 1, 1, 1, 1, 64, dtype="float16"),
    AttentionCase(1, 64, 64, 1, 1, 128, dtype="float16", lse_gradient=True),
    AttentionCase(2, 128, 128, 2, 2, 64, causal=True, dtype="float16"),
    AttentionCase(1, 129, 127, 2, 1, 64, causal=True, dtype="float16"),
    AttentionCase(1, 127, 129, 2, 1, 128, causal=True, dtype="float16"),
    AttentionCase(2, 300, 100, 2, 1, 64, causal=True, dtype="float16"),  # 200 queries see nothing
    AttentionCase(1, 100, 300, 1, 1, 128, causal=True, dtype="float16"),
    AttentionCase(1, 70, 90, 4, 2, 64, dtype="float16"),
    AttentionCase(3, 200, 33, 1, 1, 64, dtype="float16", lse_gradient=True),
    AttentionCase(1, 65, 500, 3, 1, 128, dtype="float16"),
    AttentionCase(1, 400, 400, 1, 1, 64, causal=True, dtype="float16"),
    AttentionCase(2, 17, 64, 2, 2, 128, dtype="float16"),
    AttentionCase(1, 9, 9, 140, 140, 64, dtype="float16"),  # the gradient kernel finishes some of dQ itself
)
FORWARD_ONLY = (
    AttentionCase(2, 300, 500, 4, 2, 64, causal=True, window=100, sinks=True, backward=False),
    AttentionCase(2, 200, 500, 2, 1, 128, starts=True, softcap=20.0, backward=False),
    AttentionCase(1, 1000, 1000, 2, 2, 64, window=70, backward=False),
)
TYPICAL = AttentionCase(4, 4096, 4096, 16, 16, 64, causal=True, dtype="bfloat16")

OPERATIONS = (
    Operation(
        name="attention_hopper",
        case=AttentionCase,
        small=(*SMALL, *(replace(case, dtype="bfloat16") for case in FORWARD_ONLY)),
        typical=TYPICAL,
        draw=draw,
        launches=launches,
        gluon=True,
    ),
    Operation(
        name="attention_hopper_sums",
        case=AttentionCase,
        small=SMALL,
        typical=TYPICAL,
        draw=draw,
        launches=sums_launches,
    ),
)
