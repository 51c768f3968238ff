"""The three matrix products of a chunk, by cuBLAS, into memory that is there already.

Shapes: n tokens of a chunk, C model dim, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def make_logits(out_nV: Tensor, hidden_nC: Tensor, matrix_VC: Tensor) -> None:
    """``hidden @ matrix.T``; rows of ``out_nV`` may lie apart."""
    torch.mm(hidden_nC, matrix_VC.T, out=out_nV)


def hidden_gradient(out_nC: Tensor, gradient_nV: Tensor, matrix_VC: Tensor) -> None:
    """``gradient @ matrix`` in the dtype of ``out_nC``, which may be wider than the factors'."""
    if out_nC.dtype == matrix_VC.dtype:
        torch.mm(gradient_nV, matrix_VC, out=out_nC)
    elif out_nC.is_cuda and out_nC.dtype == torch.float32:
        torch.mm(gradient_nV, matrix_VC, out_dtype=torch.float32, out=out_nC)
    else:
        out_nC.copy_(gradient_nV @ matrix_VC)


def add_matrix_gradient(total_VC: Tensor, gradient_nV: Tensor, hidden_nC: Tensor, *, first: bool) -> None:
    """``total += gradient.T @ hidden`` (``first``: = instead of +=); ``total_VC`` is float32 or wider."""
    beta = 0 if first else 1
    if total_VC.dtype == hidden_nC.dtype:
        torch.addmm(total_VC, gradient_nV.T, hidden_nC, beta=beta, out=total_VC)
    elif total_VC.is_cuda:
        torch.addmm(
            total_VC, gradient_nV.T, hidden_nC, out_dtype=torch.float32, beta=beta, out=total_VC
        )  # products of half precision, added in the registers that hold their sums
    else:
        product_VC = gradient_nV.T.to(total_VC.dtype) @ hidden_nC.to(total_VC.dtype)
        total_VC.copy_(product_VC if first else total_VC + product_VC)
