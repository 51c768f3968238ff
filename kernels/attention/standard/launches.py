"""Standard attention's three launches in order, and the public function that runs them.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.kernels.attention.call import AttentionCall, addressable
from lit_eff.kernels.attention.checks import check_shapes
from lit_eff.kernels.attention.interface import supports
from lit_eff.kernels.attention.standard.output import output_launch
from lit_eff.kernels.attention.standard.scores import scores_launch
from lit_eff.kernels.attention.standard.softmax import softmax_launch
from lit_eff.profiling.launch import Launch


def standard_launches(
    call: AttentionCall, scores_BHTS: Tensor, weights_BHTS: Tensor, out_BTHD: Tensor
) -> list[Launch]:
    """The launches, in order, that fill ``scores``, ``weights`` (contiguous, dtype of q) and ``out``.

    Only ``call``'s tensors, scale, causality and window are used; :func:`standard_attention` has no others.
    """
    return [
        scores_launch(call, scores_BHTS),
        softmax_launch(scores_BHTS, weights_BHTS),
        output_launch(call, weights_BHTS, out_BTHD),
    ]


def standard_attention(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Exact attention with scores and weights in HBM: 4 T S + 4 T D elements a head are moved at least.

    A baseline to measure against, not to train with: the result carries no gradient.

    Args:
        q_BTHD, k_BSKD, v_BSKD: float16, bfloat16 or float32, of one dtype and device; any strides. H is a
            multiple of K.
        causal, window, scale: as in :func:`lit_eff.kernels.attention.attention`.

    Returns:
        (B, T, H, D) in the dtype of ``q_BTHD``; zeros for a query that sees no key. Scores and weights are
        rounded to that dtype on their way through HBM.

    Raises:
        UserError: naming the argument that does not fit, or why the kernels cannot run here.

    Source: FlashAttention (Dao et al. 2022), Algorithm 0.
    """
    check_shapes(q_BTHD, k_BSKD, v_BSKD)
    if window is not None and window < 1:
        raise UserError(f"attention: window {window} must be at least 1")
    support = supports(q_BTHD.device, head_dim=q_BTHD.shape[3], dtype=q_BTHD.dtype)
    if not support:
        raise UserError(f"standard attention cannot run: {support.reason}")
    batch, queries, heads, head_dim = q_BTHD.shape
    q, k, v = (addressable(tensor.detach()) for tensor in (q_BTHD, k_BSKD, v_BSKD))
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    call = AttentionCall(q, k, v, None, None, None, scale, causal, window, None)
    scores_BHTS = q_BTHD.new_empty(batch, heads, queries, k_BSKD.shape[1])
    weights_BHTS = torch.empty_like(scores_BHTS)
    out_BTHD = torch.empty(q_BTHD.shape, dtype=q_BTHD.dtype, device=q_BTHD.device)
    if out_BTHD.numel() == 0:
        return out_BTHD
    if scores_BHTS.numel() == 0:
        return out_BTHD.zero_()
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(q_BTHD):  # type: ignore[no-untyped-call]
        for launch in standard_launches(call, scores_BHTS, weights_BHTS, out_BTHD):
            launch.run()
    return out_BTHD
