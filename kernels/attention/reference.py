"""Attention in plain PyTorch: the definition that the kernels are tested against, and runs anywhere.

Shapes: B batch, T query length, S key length, N packed queries, M packed keys, H query heads, K kv heads,
D head dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_eff.kernels.attention.dropout import kept_weights


def slots_ahead(
    queries: int, keys: int, *, starts_B: Tensor | None = None, device: torch.device | None = None
) -> Tensor:
    """How many slots each query stands after each key, int64 (B or 1, T, S); negative for later keys.

    Query t stands at key slot ``starts_B[b] + t``; without ``starts_B`` the last query stands at the last
    key (bottom-right alignment).
    """
    if starts_B is None:
        offset_B11 = torch.full((1, 1, 1), keys - queries, device=device)
    else:
        offset_B11 = starts_B.to(torch.int64)[:, None, None]
    slot_BT1 = offset_B11 + torch.arange(queries, device=offset_B11.device)[None, :, None]
    return slot_BT1 - torch.arange(keys, device=offset_B11.device)


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

    ``causal``: keys up to the query's own slot (see :func:`slots_ahead`); ``starts_B`` implies it, for slots
    after a query's own hold nothing yet. A window of w lets a query see the slots less than w away from its
    own. Documents: keys of the query's id only.

    Returns:
        bool, (B or 1, T, S); True where the query sees the key.
    """
    mask_BTS: Tensor | None = None
    if causal or starts_B is not None or window is not None:
        ahead_BTS = slots_ahead(queries, keys, starts_B=starts_B, device=device)
        mask_BTS = torch.ones_like(ahead_BTS, dtype=torch.bool)
        if causal or starts_B is not None:
            mask_BTS = mask_BTS & (ahead_BTS >= 0)
        if window is not None:
            mask_BTS = mask_BTS & (ahead_BTS.abs() < window)
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
    sinks: Tensor | None = None,
    alibi: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    scale: float | None = None,
    documents_BT: Tensor | None = None,
    key_documents_BS: Tensor | None = None,
    starts_B: Tensor | None = None,
    return_lse: bool = False,
    accumulate: torch.dtype = torch.float32,
    first_row: int = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    """Standard attention (FlashAttention, Dao et al. 2022, Algorithm 0), every product in ``accumulate``.

    Arguments as in :func:`lit_eff.kernels.attention.attention`; ``accumulate`` is float32 or float64,
    ``first_row`` the first batch row's index in the dropout mask. A query that sees no key yields zeros and
    no gradient to the keys.

    Returns:
        The output (B, T, H, D) in the dtype of ``q_BTHD``; with ``return_lse`` also the natural log-sum-exp
        of the scores and sinks, (B, H, T) in ``accumulate``.
    """
    batch, queries, heads, head_dim = q_BTHD.shape
    keys, kv_heads = k_BSKD.shape[1:3]
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    group = heads // kv_heads if kv_heads else 1
    q = q_BTHD.to(accumulate)
    k_BSHD = k_BSKD.to(accumulate).repeat_interleave(group, dim=2)
    v_BSHD = v_BSKD.to(accumulate).repeat_interleave(group, dim=2)

    scores_BHTS = torch.einsum("bthd,bshd->bhts", q, k_BSHD) * scale
    if softcap is not None:
        scores_BHTS = softcap * torch.tanh(scores_BHTS / softcap)
    if alibi is not None:
        ahead_BTS = slots_ahead(queries, keys, starts_B=starts_B, device=q.device)
        scores_BHTS = scores_BHTS - alibi.to(accumulate)[:, None, None] * ahead_BTS[:, None].abs()
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
    if mask_BTS is not None:
        scores_BHTS = scores_BHTS.masked_fill(~mask_BTS[:, None], -math.inf)
    if sinks is not None:  # one more column, whose value is zero
        sink_BHT1 = sinks.to(accumulate)[:, None, None].expand(batch, heads, queries, 1)
        scores_BHTS = torch.cat([scores_BHTS, sink_BHT1], dim=-1)
    # A row of -inf would turn into NaN, in the gradient too, so rows without anything go through as zeros.
    empty_BHT1 = (scores_BHTS == -math.inf).all(dim=-1, keepdim=True)
    scores_BHTS = scores_BHTS.masked_fill(empty_BHT1, 0.0)
    weights_BHTS = torch.softmax(scores_BHTS, dim=-1).masked_fill(empty_BHT1, 0.0)[..., :keys]
    lse_BHT = torch.logsumexp(scores_BHTS, dim=-1).masked_fill(empty_BHT1[..., 0], -math.inf)
    if dropout_p > 0:
        if seed is None:
            raise ValueError("attention_reference draws no seed of its own: give one with dropout_p")
        shape = (batch, heads, queries, keys)
        kept = kept_weights(dropout_p, seed, shape, first_row=first_row, device=q.device)
        weights_BHTS = weights_BHTS * kept / (1 - dropout_p)
    out_BTHD = torch.einsum("bhts,bshd->bthd", weights_BHTS, v_BSHD).to(q_BTHD.dtype)
    return (out_BTHD, lse_BHT) if return_lse else out_BTHD


def attention_varlen_reference(
    q_NHD: Tensor,
    k_MKD: Tensor,
    v_MKD: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    return_lse: bool = False,
    **options: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`attention_reference` for each packed sequence on its own; reads the lengths on the host.

    ``options`` are those of :func:`lit_eff.kernels.attention.attention_varlen`, and ``accumulate``.

    Returns:
        The output (N, H, D); with ``return_lse`` also the log-sum-exp, (H, N) in ``accumulate``.
    """
    out_NHD, lse_HN = each_sequence(
        attention_reference, (q_NHD, k_MKD, v_MKD), (cu_seqlens_q, cu_seqlens_k), return_lse, **options
    )
    return out_NHD if lse_HN is None else (out_NHD, lse_HN)


def each_sequence(
    attend: Callable[..., Tensor | tuple[Tensor, Tensor]],
    tensors: tuple[Tensor, Tensor, Tensor],
    cu_seqlens: tuple[Tensor, Tensor],
    return_lse: bool,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Split packed q, k and v, ``attend`` within each sequence, and join: (N, H, D) and (H, N)."""
    q_lengths, k_lengths = (lengths.diff().tolist() for lengths in cu_seqlens)
    split = [torch.split(x, n) for x, n in zip(tensors, (q_lengths, k_lengths, k_lengths), strict=True)]
    results = [
        attend(q[None], k[None], v[None], return_lse=return_lse, first_row=row, **options)
        for row, (q, k, v) in enumerate(zip(*split, strict=True))
    ]
    if not results:
        q_NHD = tensors[0]
        return torch.zeros_like(q_NHD), q_NHD.new_zeros(q_NHD.shape[1], 0) if return_lse else None
    outs = [result[0] if isinstance(result, tuple) else result for result in results]
    lses = [result[1][0] for result in results if isinstance(result, tuple)]
    return torch.cat(outs, dim=1)[0], torch.cat(lses, dim=1) if return_lse else None
