"""Attention on a key/value cache in plain PyTorch: the definition that the kernels are tested against.

Shapes: B batch, T query length, S cache slots, P pages a row, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lit_eff.kernels.attention.reference import slots_ahead, visible_keys


def contiguous_cache(cache: Tensor, page_table_BP: Tensor | None) -> Tensor:
    """The (B, S, K, D) cache that pages (pages, page size, K, D) spell out; entries below 0 name no page."""
    if page_table_BP is None:
        return cache
    return cache[page_table_BP.clamp(min=0).long()].flatten(1, 2)


def visible_slots(
    queries: int,
    capacity: int,
    lengths_B: Tensor,
    *,
    query_lengths_B: Tensor | None = None,
    tree_mask_BTT: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """Which cache slots each query sees: bool (B, T, S).

    Query t of row b stands at slot ``lengths_B[b] + t`` and sees the slots up to its own and less than
    ``window`` behind it; of the call's own slots only those that the tree mask grants. Queries past
    ``query_lengths_B`` see nothing.
    """
    mask_BTS = visible_keys(queries, capacity, window=window, starts_B=lengths_B)
    assert mask_BTS is not None
    if tree_mask_BTT is not None:
        own_BS = torch.arange(capacity, device=lengths_B.device) - lengths_B.to(torch.int64)[:, None]
        index_BTS = own_BS.clamp(0, max(queries - 1, 0))[:, None].expand(-1, queries, -1)
        mask_BTS = mask_BTS & ((own_BS < 0)[:, None] | tree_mask_BTT.gather(2, index_BTS))
    if query_lengths_B is not None:
        there_BT = torch.arange(queries, device=lengths_B.device) < query_lengths_B[:, None]
        mask_BTS = mask_BTS & there_BT[:, :, None]
    return mask_BTS


def attention_with_cache_reference(
    q_BTHD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths_B: Tensor,
    *,
    page_table_BP: Tensor | None = None,
    query_lengths_B: Tensor | None = None,
    tree_mask_BTT: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    accumulate: torch.dtype = torch.float32,
) -> Tensor | tuple[Tensor, Tensor]:
    """Standard attention over each row's cache, every product in ``accumulate`` (float32 or float64).

    Arguments as in :func:`lit_eff.kernels.attention.with_cache.attention_with_cache`. Slots that a query does
    not see are never read, whatever they hold.

    Returns:
        The output (B, T, H, D) in the dtype of ``q_BTHD``; with ``return_lse`` also the natural log-sum-exp
        of the scores and sinks, (B, H, T) in ``accumulate``.
    """
    queries, heads, head_dim = q_BTHD.shape[1:]
    k_BSKD, v_BSKD = (contiguous_cache(cache, page_table_BP).to(accumulate) for cache in (k_cache, v_cache))
    capacity, kv_heads = k_BSKD.shape[1:3]
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    mask_BTS = visible_slots(
        queries,
        capacity,
        lengths_B,
        query_lengths_B=query_lengths_B,
        tree_mask_BTT=tree_mask_BTT,
        window=window,
    )
    unseen_BS11 = ~mask_BTS.any(dim=1)[:, :, None, None]
    k_BSHD, v_BSHD = (
        cache.masked_fill(unseen_BS11, 0.0).repeat_interleave(heads // kv_heads, dim=2)
        for cache in (k_BSKD, v_BSKD)
    )

    scores_BHTS = torch.einsum("bthd,bshd->bhts", q_BTHD.to(accumulate), k_BSHD) * scale
    if softcap is not None:
        scores_BHTS = softcap * torch.tanh(scores_BHTS / softcap)
    if alibi is not None:
        distance_BTS = slots_ahead(queries, capacity, starts_B=lengths_B).abs()
        scores_BHTS = scores_BHTS - alibi.to(accumulate)[:, None, None] * distance_BTS[:, None]
    scores_BHTS = scores_BHTS.masked_fill(~mask_BTS[:, None], -math.inf)
    lse_BHT = torch.logsumexp(scores_BHTS, dim=-1)
    if sinks is not None:
        lse_BHT = torch.logaddexp(lse_BHT, sinks.to(accumulate)[:, None])
    weights_BHTS = torch.exp(scores_BHTS - lse_BHT.masked_fill(lse_BHT == -math.inf, 0.0)[..., None])
    out_BTHD = torch.einsum("bhts,bshd->bthd", weights_BHTS, v_BSHD).to(q_BTHD.dtype)
    if query_lengths_B is not None:  # a query that is not there has no sink either
        there_BT = torch.arange(queries, device=lengths_B.device) < query_lengths_B[:, None]
        lse_BHT = lse_BHT.masked_fill(~there_BT[:, None], -math.inf)
    return (out_BTHD, lse_BHT) if return_lse else out_BTHD
