"""Attention in plain PyTorch: what the kernels are tested against, and the form that runs anywhere.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def visible_keys(
    queries: int,
    keys: int,
    *,
    causal: bool = False,
    window: int | None = None,
    documents_BT: Tensor | None = None,
    key_documents_BS: Tensor | None = None,
    starts_B: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor | None:
    """The attention mask: which keys each query sees, or None when every query sees every key.

    Query t stands at key slot ``starts_B[b] + t``; without ``starts_B`` the last query stands at the last
    key (bottom-right alignment) and ``causal`` decides. With ``starts_B`` the mask is always causal: slots
    after a query's own hold nothing yet. A window of w lets a query see its own slot and the w - 1 before it.

    Returns:
        bool, (B or 1, T, S); True where the query sees the key.
    """
    mask_BTS: Tensor | None = None
    if causal or starts_B is not None:
        if starts_B is None:
            offset_B11 = torch.full((1, 1, 1), keys - queries, device=device)
        else:
            offset_B11 = starts_B.to(torch.int64)[:, None, None]
        slot_BT1 = offset_B11 + torch.arange(queries, device=offset_B11.device)[None, :, None]
        key_S = torch.arange(keys, device=offset_B11.device)
        mask_BTS = key_S <= slot_BT1
        if window is not None:
            mask_BTS = mask_BTS & (slot_BT1 - key_S < window)
    if documents_BT is not None:
        key_documents_BS = documents_BT if key_documents_BS is None else key_documents_BS
        same_BTS = documents_BT[:, :, None] == key_documents_BS[:, None, :]
        mask_BTS = same_BTS if mask_BTS is None else mask_BTS & same_BTS
    return mask_BTS


def attention_reference(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    documents_BT: Tensor | None = None,
    key_documents_BS: Tensor | None = None,
    starts_B: Tensor | None = None,
    return_lse: bool = False,
    accumulate: torch.dtype = torch.float32,
) -> Tensor | tuple[Tensor, Tensor]:
    """Standard attention (FlashAttention, Dao et al. 2022, Algorithm 0), every product in ``accumulate``.

    Arguments as in :func:`lit_eff.kernels.attention.attention`; ``accumulate`` is float32 or float64. A
    query that sees no key yields zeros, a log-sum-exp of -inf and no gradient.

    Returns:
        The output (B, T, H, D) in the dtype of ``q_BTHD``; with ``return_lse`` also the natural log-sum-exp
        of the scores, (B, H, T) in ``accumulate``.
    """
    queries, heads, head_dim = q_BTHD.shape[1:]
    keys, kv_heads = k_BSKD.shape[1:3]
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    group = heads // kv_heads
    q = q_BTHD.to(accumulate)
    k_BSHD = k_BSKD.to(accumulate).repeat_interleave(group, dim=2)
    v_BSHD = v_BSKD.to(accumulate).repeat_interleave(group, dim=2)

    scores_BHTS = torch.einsum("bthd,bshd->bhts", q, k_BSHD) * scale
    if softcap is not None:
        scores_BHTS = softcap * torch.tanh(scores_BHTS / softcap)
    mask_BTS = visible_keys(
        queries,
        keys,
        causal=causal,
        window=window,
        documents_BT=documents_BT,
        key_documents_BS=key_documents_BS,
        starts_B=starts_B,
        device=q.device,
    )
    if mask_BTS is None:
        weights_BHTS = torch.softmax(scores_BHTS, dim=-1)
        lse_BHT = torch.logsumexp(scores_BHTS, dim=-1)
    else:
        mask = mask_BTS[:, None]
        sees_any = mask.any(dim=-1, keepdim=True)
        # A row of -inf would turn into NaN, in the gradient too, so rows without keys go through as zeros.
        scores_BHTS = scores_BHTS.masked_fill(~mask, -math.inf).masked_fill(~sees_any, 0.0)
        weights_BHTS = torch.softmax(scores_BHTS, dim=-1) * sees_any
        lse_BHT = torch.logsumexp(scores_BHTS, dim=-1).masked_fill(~sees_any[..., 0], -math.inf)
    out_BTHD = torch.einsum("bhts,bshd->bthd", weights_BHTS, v_BSHD).to(q_BTHD.dtype)
    return (out_BTHD, lse_BHT) if return_lse else out_BTHD
