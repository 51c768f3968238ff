"""The skinny linear in plain PyTorch: the definition that the kernel is tested against.

Shapes: N rows, C input channels, O weight rows, F outputs (O, or O / 2 with swiglu), S scale groups.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "swiglu")


class Norm(NamedTuple):
    """What an input's rows are normalised by: RMSNorm (Zhang & Sennrich 2019), or LayerNorm if ``centered``.

    ``weight_C`` and ``bias_C`` are floating point or None; ``eps`` is added to the mean square or variance.
    """

    weight_C: Tensor | None = None
    bias_C: Tensor | None = None
    eps: float = 1e-6
    centered: bool = False


def normalise(x_NC: Tensor, norm: Norm, accumulate: torch.dtype = torch.float32) -> Tensor:
    """Rows of ``x_NC`` normalised in ``accumulate``, in their own dtype."""
    wide_NC = x_NC.to(accumulate)
    if norm.centered:
        wide_NC = wide_NC - wide_NC.mean(dim=1, keepdim=True)
    wide_NC = wide_NC * torch.rsqrt(wide_NC.square().mean(dim=1, keepdim=True) + norm.eps)
    if norm.weight_C is not None:
        wide_NC = wide_NC * norm.weight_C.to(accumulate)
    if norm.bias_C is not None:
        wide_NC = wide_NC + norm.bias_C.to(accumulate)
    return wide_NC.to(x_NC.dtype)


def dequantised(weight_OC: Tensor, scales_OS: Tensor | None, accumulate: torch.dtype) -> Tensor:
    """The weight in ``accumulate``, each of its S equal groups of channels times its scale."""
    wide_OC = weight_OC.to(accumulate)
    if scales_OS is None:
        return wide_OC
    size = weight_OC.shape[1] // scales_OS.shape[1]
    return wide_OC * scales_OS.to(accumulate).repeat_interleave(size, dim=1)


def activate(y_NO: Tensor, activation: str | None) -> Tensor:
    """gelu (exact), gelu_tanh, silu, or swiglu: silu of the first half of the outputs times the second."""
    if activation == "gelu":
        return F.gelu(y_NO)
    if activation == "gelu_tanh":
        return F.gelu(y_NO, approximate="tanh")
    if activation == "silu":
        return F.silu(y_NO)
    if activation == "swiglu":
        gate_NF, up_NF = y_NO.chunk(2, dim=1)
        return F.silu(gate_NF) * up_NF
    return y_NO


def skinny_linear_reference(
    x_NC: Tensor,
    weight_OC: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    norm: Norm | None = None,
    scales: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    accumulate: torch.dtype = torch.float32,
) -> Tensor:
    """act(norm(x) W^T + bias) + residual, all but the normalised rows in ``accumulate``; (N, F).

    Arguments as in :func:`lit_eff.kernels.linear.skinny_linear`.
    """
    if norm is not None:
        x_NC = normalise(x_NC, norm, max(accumulate, torch.float32, key=lambda dtype: dtype.itemsize))
    y_NO = x_NC.to(accumulate) @ dequantised(weight_OC, scales, accumulate).T
    if bias is not None:
        y_NO = y_NO + bias.to(accumulate)
    y_NF = activate(y_NO, activation)
    if residual is not None:
        y_NF = y_NF + residual.to(accumulate)
    return y_NF.to(x_NC.dtype if out_dtype is None else out_dtype)
