"""SwiGLU in plain PyTorch: the definition that the kernels are tested against.

Shapes: F outputs, the last dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu_reference(
    gate: Tensor, up: Tensor | None = None, *, accumulate: torch.dtype = torch.float32
) -> Tensor:
    """silu(gate) * up in ``accumulate``, rounded to the dtype of ``gate``; without ``up``, of the halves of
    ``gate``.
    """
    first, second = gate.chunk(2, dim=-1) if up is None else (gate, up)
    return (F.silu(first.to(accumulate)) * second.to(accumulate)).to(gate.dtype)
