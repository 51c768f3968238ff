"""The public norms: checks, then the operator.

Shapes: C channels, the last dimension; any dimensions before it are rows.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.kernels.device import TRITON_INSTALLED
from lit_eff.kernels.linear.interface import DTYPES, check_beside, runs_kernels
from lit_eff.kernels.norm.call import MAX_CHANNELS
from lit_eff.kernels.norm.reference import norm_reference

if TRITON_INSTALLED:
    from lit_eff.kernels.norm import operator


@overload
def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    *,
    residual: None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, *, residual: Tensor, out_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]: ...
def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``F.rms_norm`` over the last dimension, of ``x`` or of ``x + residual``, in one pass; differentiable.

    As in PyTorch, all is in float32 and rounded once, after the gain. (Hugging Face's Llama rounds before the
    gain too.) A row yields the same bits whatever rows are beside it. Gradients are the same from run to run:
    no atomics. Autocast changes nothing here: dtypes are as said below; ``out_dtype`` spares it a cast.

    On a CPU the plain reference runs instead.

    Args:
        x: (..., C), C up to 16,384; float16, bfloat16 or float32, any strides (rows whose channels do not lie
            side by side, or that are not aligned to 16 bytes, are copied first).
        weight: (C,) gain, floating point, or None.
        eps: added to the mean square.
        residual: floating point, the shape of ``x``.
        out_dtype: of the normalised rows; by default that of ``x``, or of ``x + residual``.

    Returns:
        The normalised rows, contiguous; with ``residual`` also ``x + residual``, rounded to its dtype, which
        is what was normalised.

    Raises:
        UserError: naming the argument that does not fit, before anything runs.

    Source: Zhang & Sennrich 2019, equation 4.
    """
    return _norm("rms_norm", x, weight, None, eps, residual, out_dtype)


@overload
def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    residual: None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor: ...
@overload
def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    residual: Tensor,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]: ...
def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``F.layer_norm`` over the last dimension, of ``x`` or of ``x + residual``; else as :func:`rms_norm`.

    Args:
        weight: (C,) gain, floating point, or None.
        bias: (C,) shift, likewise.
        eps: added to the variance.

    Source: Ba et al. 2016.
    """
    return _norm("layer_norm", x, weight, bias, eps, residual, out_dtype)


def _norm(
    name: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    out_dtype: torch.dtype | None,
) -> Tensor | tuple[Tensor, Tensor]:
    channels = x.shape[-1] if x.ndim else 0
    if not 1 <= channels <= MAX_CHANNELS:
        raise UserError(f"{name} wants rows of 1 to {MAX_CHANNELS} channels; got {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise UserError(f"{name}: dtype {x.dtype} is not float16, bfloat16 or float32")
    if out_dtype is not None and out_dtype not in DTYPES:
        raise UserError(f"{name}: out_dtype {out_dtype} is not float16, bfloat16 or float32")
    if not eps >= 0:
        raise UserError(f"{name}: eps {eps} must be at least 0")
    for what, vector in (("weight", weight), ("bias", bias)):
        if vector is not None:
            check_beside(name, what, vector, (channels,), x)
    if residual is not None:
        check_beside(name, "residual", residual, tuple(x.shape), x)
    centered = name == "layer_norm"
    if not runs_kernels(name, x):
        out, total = norm_reference(
            x, weight, bias, eps, centered=centered, residual=residual, out_dtype=out_dtype
        )
        return out if residual is None else (out, total)
    x_NC = x.reshape(-1, channels)
    residual_NC = None if residual is None else residual.reshape(-1, channels)
    out_NC, sum_NC = operator.norm_forward(x_NC, residual_NC, weight, bias, float(eps), centered, out_dtype)
    return out_NC.view(x.shape) if residual is None else (out_NC.view(x.shape), sum_NC.view(x.shape))
