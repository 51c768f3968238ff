"""Norms as PyTorch operators, so that autograd, torch.compile and fake tensors know them.

Needs Triton; :mod:`lit_eff.kernels.norm.interface` checks arguments and calls them.
Shapes: N rows, C channels, P programs of the backward.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from lit_eff.kernels.norm.backward import backward_launch
from lit_eff.kernels.norm.call import backward_programs, tile_of
from lit_eff.kernels.norm.forward import forward_launch

LIBRARY: Any = torch.library.Library("lit_eff", "FRAGMENT")  # type: ignore[no-untyped-call]
COMPLIANT = (torch.Tag.pt2_compliant_tag,)
LIBRARY.define(
    "norm_forward(Tensor x_NC, Tensor? residual_NC, Tensor? weight_C, Tensor? bias_C, float eps, "
    "bool centered, ScalarType? out_dtype) -> (Tensor, Tensor)",
    tags=COMPLIANT,
)
LIBRARY.define(
    "norm_backward(Tensor dout_NC, Tensor? dsum_NC, Tensor x_NC, Tensor? weight_C, float eps, bool centered, "
    "ScalarType dx_dtype, ScalarType? dresidual_dtype, bool gain, bool shift) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    tags=COMPLIANT,
)
# The normalised rows, and what was normalised: x + residual, or (0,) without.
norm_forward = torch.ops.lit_eff.norm_forward.default
# Gradients of x; of the residual if its dtype is another (else (0,): it is that of x); of gain and shift in
# float32, if asked for (else (0,)).
norm_backward = torch.ops.lit_eff.norm_backward.default


def _empty_outputs(x_NC: Tensor, residual_NC: Tensor | None, *others: Any) -> tuple[Tensor, Tensor]:
    out_dtype: torch.dtype | None = others[-1]
    dtype = x_NC.dtype
    if residual_NC is not None:
        dtype = torch.promote_types(dtype, residual_NC.dtype)
    out_NC = torch.empty(x_NC.shape, dtype=out_dtype or dtype, device=x_NC.device)
    sum_NC = torch.empty(0 if residual_NC is None else x_NC.shape, dtype=dtype, device=x_NC.device)
    return out_NC, sum_NC


def _forward(
    x_NC: Tensor,
    residual_NC: Tensor | None,
    weight_C: Tensor | None,
    bias_C: Tensor | None,
    eps: float,
    centered: bool,
    out_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    out_NC, sum_NC = _empty_outputs(x_NC, residual_NC, out_dtype)
    if out_NC.numel():
        with torch.cuda.device(x_NC.device) if x_NC.is_cuda else nullcontext():
            forward_launch(x_NC, residual_NC, weight_C, bias_C, eps, centered, out_NC, sum_NC).run()
    return out_NC, sum_NC


def _backward(
    dout_NC: Tensor,
    dsum_NC: Tensor | None,
    x_NC: Tensor,
    weight_C: Tensor | None,
    eps: float,
    centered: bool,
    dx_dtype: torch.dtype,
    dresidual_dtype: torch.dtype | None,
    gain: bool,
    shift: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, channels = x_NC.shape
    programs = backward_programs(tile_of(channels), rows) if rows else 0

    def empty(wanted: object, dtype: torch.dtype, count: int) -> Tensor:
        return torch.empty((count, channels) if wanted else 0, dtype=dtype, device=x_NC.device)

    dx_NC = empty(True, dx_dtype, rows)
    dresidual_NC = empty(dresidual_dtype, dresidual_dtype or dx_dtype, rows)
    dgain_PC, dshift_PC = empty(gain, torch.float32, programs), empty(shift, torch.float32, programs)
    if rows:
        with torch.cuda.device(x_NC.device) if x_NC.is_cuda else nullcontext():
            backward_launch(
                dout_NC, dsum_NC, x_NC, weight_C, eps, centered, dx_NC,
                dresidual_NC if dresidual_dtype else None,
                dgain_PC if gain else None,
                dshift_PC if shift else None,
                programs,
            ).run()  # fmt: skip
    return (
        dx_NC,
        dresidual_NC,
        dgain_PC.sum(0) if gain else dgain_PC,
        dshift_PC.sum(0) if shift else dshift_PC,
    )


def _fake_backward(dout_NC: Tensor, dsum_NC: Tensor | None, x_NC: Tensor, *others: Any) -> tuple[Tensor, ...]:
    dx_dtype, dresidual_dtype, gain, shift = others[-4:]
    channels = x_NC.shape[1]
    return (
        x_NC.new_empty(x_NC.shape, dtype=dx_dtype),
        x_NC.new_empty(x_NC.shape if dresidual_dtype else 0, dtype=dresidual_dtype or dx_dtype),
        x_NC.new_empty(channels if gain else 0, dtype=torch.float32),
        x_NC.new_empty(channels if shift else 0, dtype=torch.float32),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x_NC, residual_NC, weight_C, bias_C, ctx.eps, ctx.centered, _ = inputs
    ctx.save_for_backward(x_NC if residual_NC is None else output[1], weight_C)
    ctx.dtypes = [None if each is None else each.dtype for each in (x_NC, residual_NC, weight_C, bias_C)]
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dout_NC: Tensor | None, dsum_NC: Tensor | None) -> tuple[Tensor | None, ...]:
    x_NC, weight_C = ctx.saved_tensors
    dx_dtype, dresidual_dtype, weight_dtype, bias_dtype = ctx.dtypes
    gain, shift = ctx.needs_input_grad[2:4]
    if dresidual_dtype is None:
        dsum_NC = None  # the second output is no sum then
    if dout_NC is None:
        if dsum_NC is None:
            return (None,) * 7
        dout_NC = torch.zeros_like(x_NC)
    apart = dresidual_dtype if dresidual_dtype != dx_dtype else None
    dx_NC, dresidual_NC, dgain_C, dshift_C = norm_backward(
        dout_NC, dsum_NC, x_NC, weight_C, ctx.eps, ctx.centered, dx_dtype, apart, gain, shift
    )
    return (
        dx_NC,
        None if dresidual_dtype is None else dresidual_NC if apart else dx_NC,
        dgain_C.to(weight_dtype) if gain else None,
        dshift_C.to(bias_dtype) if shift else None,
        None,
        None,
        None,
    )


LIBRARY.impl("norm_forward", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("norm_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("lit_eff::norm_forward", _empty_outputs, lib=LIBRARY)
torch.library.register_fake("lit_eff::norm_backward", _fake_backward, lib=LIBRARY)
torch.library.register_autograd("lit_eff::norm_forward", _gradients, setup_context=_save, lib=LIBRARY)
