"""The three matrix products of a chunk, by cuBLAS, into memory that is there already.

Shapes: n tokens of a chunk, C model dim, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

ALIGNMENT = 8  # elements; of sizes that are not a multiple, cuBLAS is up to eight times slower


def make_logits(out_nV: Tensor, hidden_nC: Tensor, matrix_VC: Tensor) -> None:
    """``hidden @ matrix.T``; rows of ``out_nV`` may lie apart."""
    for part in _column_parts(matrix_VC.shape[0]):
        torch.mm(hidden_nC, matrix_VC[part].T, out=out_nV[:, part])


def hidden_gradient(out_nC: Tensor, gradient_nV: Tensor, matrix_VC: Tensor) -> None:
    """``gradient @ matrix`` in the dtype of ``out_nC``, which may be wider than the factors'."""
    for part in _column_parts(matrix_VC.shape[0]):
        _multiply(out_nC, gradient_nV[:, part], matrix_VC[part], first=part.start == 0)


def add_matrix_gradient(total_VC: Tensor, gradient_nV: Tensor, hidden_nC: Tensor, *, first: bool) -> None:
    """``total += gradient.T @ hidden`` (``first``: = instead of +=); ``total_VC`` is float32."""
    for part in _column_parts(total_VC.shape[0]):
        _multiply(total_VC[part], gradient_nV[:, part].T, hidden_nC, first=first)


def _column_parts(columns: int) -> list[slice]:
    """The columns up to a multiple of `ALIGNMENT`, and the few beyond."""
    border = columns // ALIGNMENT * ALIGNMENT
    parts = [slice(0, border), slice(border, columns)]
    return [part for part in parts if part.start < part.stop]


def _multiply(out: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """``out += left @ right`` (``first``: =), added in the registers that hold the float32 sums."""
    beta = 0 if first else 1
    if first and out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    elif out.dtype == left.dtype:
        torch.addmm(out, left, right, out=out)
    elif out.is_cuda:
        torch.addmm(out, left, right, out_dtype=out.dtype, beta=beta, out=out)
    else:  # the interpreter's tests: PyTorch has no such product on a CPU
        product = left.to(out.dtype) @ right.to(out.dtype)
        out.copy_(product if first else out + product)
