"""The skinny linear as a PyTorch operator, so that torch.compile, fake tensors and CUDA graphs know it.

Needs Triton; :mod:`lit_eff.kernels.linear.interface` checks arguments and calls it.
Shapes: N rows, C input channels, O weight rows, F outputs (O, or O / 2 with swiglu), S scale groups.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from lit_eff.kernels.linear.call import Product, matrix
from lit_eff.kernels.linear.kernel import skinny_linear_kernel
from lit_eff.kernels.linear.reference import Norm
from lit_eff.profiling.launch import Launch

# Triton reads TRITON_INTERPRET when a kernel is decorated, that is when this package was imported.
INTERPRETED = not isinstance(skinny_linear_kernel, triton.JITFunction)

FlatNorm = tuple[bool, Tensor | None, Tensor | None, float, bool]


def flat_norm(norm: Norm | None) -> FlatNorm:
    """A norm as an operator takes it: whether there is one, gain, shift, epsilon, centred."""
    return (False, None, None, 0.0, False) if norm is None else (True, *norm)


def norm_of(flat: FlatNorm) -> Norm | None:
    return Norm(*flat[1:]) if flat[0] else None


def linear_launch(
    product: Product, out_NF: Tensor, bias: Tensor | None, residual_NF: Tensor | None, activation: str | None
) -> Launch:
    """The launch that fills ``out_NF``."""
    plan, outputs = product.plan, out_NF.shape[1]
    stored = plan.block_o // 2 if activation == "swiglu" else plan.block_o
    grid = (product.row_tiles * triton.cdiv(outputs, stored),)
    arguments = {
        **product.arguments(),
        "p_bias": None if bias is None else bias.contiguous(),
        "residual": None if residual_NF is None else matrix(residual_NF),
        "out": matrix(out_NF),
        "outputs": outputs,
        "ACTIVATION": activation,
        "EARLY": product.early,
    }
    return Launch(skinny_linear_kernel, grid, arguments, plan.num_warps, plan.num_stages, early=product.early)


def _empty_output(x_NC: Tensor, weight_OC: Tensor, activation: str | None, out_dtype: torch.dtype) -> Tensor:
    outputs = weight_OC.shape[0] // 2 if activation == "swiglu" else weight_OC.shape[0]
    return x_NC.new_empty((x_NC.shape[0], outputs), dtype=out_dtype)


@torch.library.custom_op("lit_eff::skinny_linear", mutates_args=())
def skinny_linear(
    x_NC: Tensor,
    weight_OC: Tensor,
    scales_OS: Tensor | None,
    normed: bool,
    gain_C: Tensor | None,
    shift_C: Tensor | None,
    epsilon: float,
    centered: bool,
    bias: Tensor | None,
    residual_NF: Tensor | None,
    activation: str | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """(N, F) in ``out_dtype``."""
    out_NF = _empty_output(x_NC, weight_OC, activation, out_dtype)
    if out_NF.numel() == 0:
        return out_NF
    norm = norm_of((normed, gain_C, shift_C, epsilon, centered))
    product = Product(x_NC, weight_OC, scales_OS, norm)
    with torch.cuda.device(x_NC.device) if x_NC.is_cuda else nullcontext():
        linear_launch(product, out_NF, bias, residual_NF, activation).run()
    return out_NF


@skinny_linear.register_fake
def _(x_NC: Tensor, weight_OC: Tensor, *others: Any) -> Tensor:
    *_, activation, out_dtype = others
    return _empty_output(x_NC, weight_OC, activation, out_dtype)
