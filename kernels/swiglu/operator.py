"""SwiGLU as PyTorch operators, so that autograd, torch.compile and fake tensors know it.

Needs Triton; :mod:`lit_eff.kernels.swiglu.interface` checks arguments and calls them.
Shapes: N rows, F outputs, W the width of a gate's rows: F, or 2 F where they hold gates and then ups.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from lit_eff.kernels.swiglu.kernel import backward_launch, forward_launch

LIBRARY: Any = torch.library.Library("lit_eff", "FRAGMENT")  # type: ignore[no-untyped-call]
COMPLIANT = (torch.Tag.pt2_compliant_tag,)
LIBRARY.define("swiglu_forward(Tensor gate_NW, Tensor? up_NF) -> Tensor", tags=COMPLIANT)
LIBRARY.define(
    "swiglu_backward(Tensor dout_NF, Tensor gate_NW, Tensor? up_NF) -> (Tensor, Tensor)", tags=COMPLIANT
)
swiglu_forward = torch.ops.lit_eff.swiglu_forward.default
# Gradients of gate_NW and of up_NF, (0,) without one.
swiglu_backward = torch.ops.lit_eff.swiglu_backward.default


def _halves(gate_NW: Tensor, up_NF: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gates and ups, (N, F) each."""
    if up_NF is not None:
        return gate_NW, up_NF
    outputs = gate_NW.shape[1] // 2
    return gate_NW[:, :outputs], gate_NW[:, outputs:]


def _side_by_side(x_NW: Tensor) -> Tensor:
    """Rows whose channels are; a gradient that is one number for all elements, say, is copied."""
    return x_NW if x_NW.shape[1] == 1 or x_NW.stride(1) == 1 else x_NW.contiguous()


def _empty_output(gate_NW: Tensor, up_NF: Tensor | None) -> Tensor:
    outputs = gate_NW.shape[1] if up_NF is not None else gate_NW.shape[1] // 2
    return torch.empty((gate_NW.shape[0], outputs), dtype=gate_NW.dtype, device=gate_NW.device)


def _empty_gradients(dout_NF: Tensor, gate_NW: Tensor, up_NF: Tensor | None) -> tuple[Tensor, Tensor]:
    dgate_NW = torch.empty(gate_NW.shape, dtype=gate_NW.dtype, device=gate_NW.device)
    return dgate_NW, torch.empty(
        0 if up_NF is None else up_NF.shape, dtype=dgate_NW.dtype, device=gate_NW.device
    )


def _forward(gate_NW: Tensor, up_NF: Tensor | None) -> Tensor:
    out_NF = _empty_output(gate_NW, up_NF)
    if out_NF.numel():
        gate_NF, up_NF = _halves(_side_by_side(gate_NW), None if up_NF is None else _side_by_side(up_NF))
        with torch.cuda.device(gate_NW.device) if gate_NW.is_cuda else nullcontext():
            forward_launch(gate_NF, up_NF, out_NF).run()
    return out_NF


def _backward(dout_NF: Tensor, gate_NW: Tensor, up_NF: Tensor | None) -> tuple[Tensor, Tensor]:
    dgate_NW, dup_NF = _empty_gradients(dout_NF, gate_NW, up_NF)
    if dout_NF.numel():
        gradients = _halves(dgate_NW, None if up_NF is None else dup_NF)
        inputs = _halves(_side_by_side(gate_NW), None if up_NF is None else _side_by_side(up_NF))
        with torch.cuda.device(gate_NW.device) if gate_NW.is_cuda else nullcontext():
            backward_launch(_side_by_side(dout_NF), *inputs, *gradients).run()
    return dgate_NW, dup_NF


def _save(ctx: Any, inputs: tuple[Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dout_NF: Tensor) -> tuple[Tensor, Tensor | None]:
    gate_NW, up_NF = ctx.saved_tensors
    dgate_NW, dup_NF = swiglu_backward(dout_NF, gate_NW, up_NF)
    return dgate_NW, None if up_NF is None else dup_NF


LIBRARY.impl("swiglu_forward", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("swiglu_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("lit_eff::swiglu_forward", _empty_output, lib=LIBRARY)
torch.library.register_fake("lit_eff::swiglu_backward", _empty_gradients, lib=LIBRARY)
torch.library.register_autograd("lit_eff::swiglu_forward", _gradients, setup_context=_save, lib=LIBRARY)
