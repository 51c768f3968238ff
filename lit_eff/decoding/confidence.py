"""Confidence measures on torch tensors; their semantics are defined in ``runtime/confidence.py`` (NumPy).

Shapes: N rows, V vocabulary, C model dim.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_eff.runtime.confidence import Measure


def of_logits(logits_NV: Tensor, measure: Measure) -> Tensor:
    """``LOGIT_MEASURES`` of each row, float32 ``(N,)`` in [0, 1], from logits ``(N, V)`` of any float type.

    Equal to the NumPy form up to float32 rounding.
    """
    p_NV = logits_NV.float().softmax(dim=-1)
    if measure == "entropy":
        if p_NV.shape[-1] == 1:
            return torch.ones_like(p_NV[:, 0])
        return 1.0 + torch.xlogy(p_NV, p_NV).sum(dim=-1) / math.log(p_NV.shape[-1])
    top_N, best_N = p_NV.max(dim=-1)
    if measure == "max_probability":
        return top_N
    # The second best is the best of what is left: half the time of topk(2) on a CPU.
    p_NV.scatter_(1, best_N[:, None], 0.0)
    return top_N - p_NV.amax(dim=-1)


def hidden_saturation(hidden_NC: Tensor, before_NC: Tensor) -> Tensor:
    """Cosine of hidden states here and at the exit before, at least 0: float32 ``(N,)``."""
    return F.cosine_similarity(hidden_NC.float(), before_NC.float(), dim=-1, eps=1e-20).clamp(0.0, 1.0)
