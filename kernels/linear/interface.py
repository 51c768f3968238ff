"""The public function: checks, then the operator.

Shapes: N rows, C input channels, O weight rows, F outputs (O, or O / 2 with swiglu), S scale groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_eff.errors import UserError, nearest
from lit_eff.kernels.device import INTERPRETER_FAULT, TRITON_INSTALLED, device_obstacle
from lit_eff.kernels.linear.plan import GROUP
from lit_eff.kernels.linear.reference import ACTIVATIONS, Norm, skinny_linear_reference

if TRITON_INSTALLED:
    from lit_eff.kernels.linear import operator

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def skinny_linear(
    x_NC: Tensor,
    weight_OC: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    norm: Norm | None = None,
    scales: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """act(norm(x) W^T + bias) + residual for a few rows, whose bits depend on nothing but the row.

    Made for 1 to 16 rows, where reading the weight is all the work, and right for any number. A row yields
    the same bits whatever the number of rows, its place among them and their values: a token decoded alone,
    verified beside others or batched gives one result. For inference only: there is no backward.

    On a CPU the plain reference runs instead, which promises no bits.

    Args:
        x_NC: rows, float16, bfloat16 or float32, any strides.
        weight_OC: in the dtype of ``x_NC``, any strides (fast where channels lie side by side); or int8, with
            ``scales``.
        bias: (O,), floating point.
        residual: (N, F), floating point, added last.
        activation: None, ``gelu`` (exact), ``gelu_tanh``, ``silu``, or ``swiglu``: then the first half of the
            weight's rows are gates, the second what they gate, and F is O / 2.
        norm: normalise the rows first, in float32, rounded to their dtype.
        scales: (O,) or (O, S) float32: what each row of an int8 weight, or each of S equal groups of its
            channels, is multiplied by. C / S must be a multiple of 64 where S > 1.
        out_dtype: of the result; that of ``x_NC`` by default.

    Returns:
        (N, F), contiguous. Sums are in float32, rounded once.

    Raises:
        UserError: naming the argument that does not fit, before anything runs.
    """
    if scales is not None and scales.ndim == 1:
        scales = scales[:, None]
    outputs = check_product("skinny_linear", x_NC, weight_OC, scales, activation)
    check_norm("skinny_linear", x_NC, norm)
    check_vector("skinny_linear", "bias", bias, weight_OC.shape[0], x_NC)
    if residual is not None:
        check_beside("skinny_linear", "residual", residual, (x_NC.shape[0], outputs), x_NC)
    if out_dtype is not None and out_dtype not in DTYPES:
        raise UserError(f"skinny_linear: out_dtype {out_dtype} is not float16, bfloat16 or float32")
    if not runs_products("skinny_linear", x_NC):
        return skinny_linear_reference(
            x_NC, weight_OC, bias=bias, residual=residual, activation=activation, norm=norm, scales=scales,
            out_dtype=out_dtype,
        )  # fmt: skip
    out_NF: Tensor = operator.skinny_linear(
        x_NC,
        weight_OC,
        scales,
        *operator.flat_norm(norm),
        bias,
        residual,
        activation,
        x_NC.dtype if out_dtype is None else out_dtype,
    )
    return out_NF


def runs_kernels(name: str, x_NC: Tensor) -> bool:
    """Whether Triton takes the call; False leaves it to the reference.

    Raises:
        UserError: on a GPU that Triton has no kernels for, or without Triton.
    """
    if x_NC.device.type == "cpu":
        return TRITON_INSTALLED and operator.INTERPRETED
    if fault := device_obstacle(x_NC.device):
        raise UserError(f"{name} cannot run: {fault}")
    return True


def runs_products(name: str, x_NC: Tensor) -> bool:
    """As :func:`runs_kernels`, of kernels that multiply matrices.

    Raises:
        UserError: for bfloat16 in the interpreter, too.
    """
    runs = runs_kernels(name, x_NC)
    if runs and operator.INTERPRETED and x_NC.dtype == torch.bfloat16:
        raise UserError(f"{name} cannot run: {INTERPRETER_FAULT}")
    return runs


def check_product(
    name: str, x_NC: Tensor, weight_OC: Tensor, scales_OS: Tensor | None, activation: str | None
) -> int:
    """Shapes and dtypes of rows and weight; returns the number of outputs."""
    if x_NC.ndim != 2 or weight_OC.ndim != 2 or x_NC.shape[1] != weight_OC.shape[1]:
        raise UserError(f"{name} wants rows (N, C) and a weight (O, C); got {_s(x_NC)} and {_s(weight_OC)}")
    outputs, channels = weight_OC.shape
    if channels == 0 or outputs == 0:
        raise UserError(f"{name}: a weight of {_s(weight_OC)} is empty")
    if max(outputs, channels) >= 2**30 or x_NC.shape[0] >= 2**30:
        raise UserError(f"{name}: rows {_s(x_NC)} by weight {_s(weight_OC)}; sizes must be below 2^30")
    if x_NC.dtype not in DTYPES:
        raise UserError(f"{name}: dtype {x_NC.dtype} is not float16, bfloat16 or float32")
    if activation is not None and activation not in ACTIVATIONS:
        raise UserError(f"{name}: unknown activation {activation!r}{nearest(activation, ACTIVATIONS)}")
    if activation == "swiglu" and outputs % 2:
        raise UserError(f"{name}: swiglu halves the weight's rows, and {outputs} is odd")
    wanted = torch.int8 if scales_OS is not None else x_NC.dtype
    if weight_OC.dtype != wanted:
        hint = " (an int8 weight needs scales)" if weight_OC.dtype == torch.int8 else ""
        raise UserError(f"{name}: weight is {weight_OC.dtype}, expected {wanted}{hint}")
    _check_device(name, "weight", weight_OC, x_NC)
    if scales_OS is not None:
        groups = scales_OS.shape[1] if scales_OS.ndim == 2 else 0
        if groups == 0 or scales_OS.shape[0] != outputs or scales_OS.dtype != torch.float32:
            raise UserError(
                f"{name}: scales must be float32 ({outputs},) or ({outputs}, groups); got {scales_OS.dtype} "
                f"{_s(scales_OS)}"
            )
        if channels % groups or (groups > 1 and channels // groups % GROUP):
            raise UserError(
                f"{name}: {groups} scale groups of {channels} channels; a group must be a multiple of {GROUP}"
            )
        _check_device(name, "scales", scales_OS, x_NC)
    return outputs // 2 if activation == "swiglu" else outputs


def check_norm(name: str, x_NC: Tensor, norm: Norm | None) -> None:
    if norm is None:
        return
    if not norm.eps >= 0:
        raise UserError(f"{name}: norm.eps {norm.eps} must be at least 0")
    check_vector(name, "norm.weight_C", norm.weight_C, x_NC.shape[1], x_NC)
    check_vector(name, "norm.bias_C", norm.bias_C, x_NC.shape[1], x_NC)


def check_vector(name: str, what: str, vector: Tensor | None, size: int, x_NC: Tensor) -> None:
    if vector is not None:
        check_beside(name, what, vector, (size,), x_NC)


def check_beside(name: str, what: str, tensor: Tensor, shape: tuple[int, ...], x_NC: Tensor) -> None:
    """A floating point tensor of one shape on the device of ``x_NC``."""
    if tuple(tensor.shape) != shape or tensor.dtype not in DTYPES:
        raise UserError(f"{name}: {what} must be floating point {shape}; got {tensor.dtype} {_s(tensor)}")
    _check_device(name, what, tensor, x_NC)


def _check_device(name: str, what: str, tensor: Tensor, x_NC: Tensor) -> None:
    if tensor.device != x_NC.device:
        raise UserError(f"{name}: {what} is on {tensor.device}, the rows on {x_NC.device}")


def _s(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
