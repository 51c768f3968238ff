"""Norms of rows in plain PyTorch: the definition that the kernels are tested against.

Shapes: N rows (any leading dimensions), C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def norm_reference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    centered: bool,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    accumulate: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """The normalised rows and what was normalised: ``x + residual``, rounded to its dtype, or ``x`` itself.

    LayerNorm if ``centered``, else RMSNorm, in ``accumulate`` (float32 or float64) from the sum on.
    """
    total = x if residual is None else x + residual
    wide = total.to(accumulate)
    gain, shift = (None if each is None else each.to(accumulate) for each in (weight, bias))
    if centered:
        out = F.layer_norm(wide, wide.shape[-1:], gain, shift, eps)
    else:
        out = F.rms_norm(wide, wide.shape[-1:], gain, eps)
    return out.to(total.dtype if out_dtype is None else out_dtype), total
