"""The public function: checks, then the operator.

Shapes: F outputs, the last dimension; any dimensions before it are rows.
"""

from __future__ import annotations

from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.kernels.device import TRITON_INSTALLED
from lit_eff.kernels.linear.interface import DTYPES, runs_kernels
from lit_eff.kernels.swiglu.reference import swiglu_reference

if TRITON_INSTALLED:
    from lit_eff.kernels.swiglu import operator


def swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """``silu(gate) * up`` in one pass; differentiable, the gradients of both in one pass, too.

    All is in float32 and rounded once. Kept for the backward are the arguments alone. A row yields the same
    bits whatever rows are beside it. On a CPU the plain reference runs instead.

    Args:
        gate: (..., F), float16, bfloat16 or float32, any strides (rows whose channels do not lie side by
            side are copied first); without ``up`` (..., 2 F), gates first, the rows of one fused projection.
        up: (..., F), of the shape and dtype of ``gate``, any strides.

    Returns:
        (..., F) in the dtype of ``gate``, contiguous.

    Raises:
        UserError: naming the argument that does not fit, before anything runs.

    Source: Shazeer 2020, SwiGLU.
    """
    width = gate.shape[-1] if gate.ndim else 0
    if width == 0 or (up is None and width % 2):
        wanted = "(..., F) with F at least 1" if up is not None else "(..., 2 F) of gates and ups"
        raise UserError(f"swiglu wants {wanted}; got {tuple(gate.shape)}")
    if gate.dtype not in DTYPES:
        raise UserError(f"swiglu: dtype {gate.dtype} is not float16, bfloat16 or float32")
    if up is not None:
        if up.shape != gate.shape or up.dtype != gate.dtype:
            raise UserError(
                f"swiglu wants gate and up alike; got {gate.dtype} {tuple(gate.shape)} and {up.dtype} "
                f"{tuple(up.shape)}"
            )
        if up.device != gate.device:
            raise UserError(f"swiglu: up is on {up.device}, gate on {gate.device}")
    if not runs_kernels("swiglu", gate):
        return swiglu_reference(gate, up).contiguous()
    out: Tensor = operator.swiglu_forward(
        gate.reshape(-1, width), None if up is None else up.reshape(-1, width)
    )
    return out.view(*gate.shape[:-1], out.shape[1])
