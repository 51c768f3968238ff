"""Attention on a cache as a PyTorch operator, so that torch.compile, fake tensors and CUDA graphs know it.

Needs Triton; :mod:`lit_eff.kernels.attention.with_cache.interface` checks arguments and calls it.
Shapes: B batch, T query length, S cache slots, P pages a row, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lit_eff.kernels.attention.call import addressable
from lit_eff.kernels.attention.with_cache.call import CacheCall, Partials
from lit_eff.kernels.attention.with_cache.combine import combine_launch
from lit_eff.kernels.attention.with_cache.paths import obstacle
from lit_eff.kernels.attention.with_cache.tiles import HOPPER, Unit
from lit_eff.profiling.launch import Launch
from lit_eff.profiling.replay import LaunchCache

LAUNCHES = LaunchCache()


def launches(call: CacheCall, out_BTHD: Tensor, lse_BHT: Tensor) -> list[Launch]:
    """What fills the contiguous ``out_BTHD`` and ``lse_BHT``: one launch, or parts and then their join.

    The Hopper kernel's where it can take the call; both yield the same bits.
    """
    if obstacle(call) is None:
        from lit_eff.kernels.attention.with_cache.hopper import split_launch

        call = replace(call, costs=HOPPER)
    else:
        from lit_eff.kernels.attention.with_cache.split import split_launch
    return launches_by(split_launch, call, out_BTHD, lse_BHT)


def launches_by(
    split_launch: Callable[..., Launch], call: CacheCall, out_BTHD: Tensor, lse_BHT: Tensor
) -> list[Launch]:
    """As :func:`launches`, by a split kernel of one's choice."""
    share = call.deal
    if share.unit is Unit.ROW:
        carried = None if share.parts == 1 else Partials.empty(call, 1)
        return [split_launch(call, out_BTHD, lse_BHT, carried)]
    partials = Partials.empty(call, share.parts)
    return [
        split_launch(call, out_BTHD, lse_BHT, partials),
        combine_launch(call, partials, out_BTHD, lse_BHT),
    ]


@torch.library.custom_op("lit_eff::attention_with_cache", mutates_args=())
def attention_with_cache(
    q_BTHD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths_B: Tensor,
    page_table_BP: Tensor | None,
    query_lengths_B: Tensor | None,
    tree_mask_BTT: Tensor | None,
    sinks_H: Tensor | None,
    alibi_H: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    max_length: int | None,
) -> tuple[Tensor, Tensor]:
    """Output (B, T, H, D) in the dtype of q and natural log-sum-exp (B, H, T) in float32."""
    batch, queries, heads, _ = q_BTHD.shape
    out_BTHD = torch.empty(q_BTHD.shape, dtype=q_BTHD.dtype, device=q_BTHD.device)
    lse_BHT = torch.empty((batch, heads, queries), dtype=torch.float32, device=q_BTHD.device)
    if out_BTHD.numel() == 0:
        return out_BTHD, lse_BHT
    tensors = (
        q_BTHD,
        addressable(k_cache),
        addressable(v_cache),
        lengths_B.contiguous(),
        page_table_BP,
        None if query_lengths_B is None else query_lengths_B.contiguous(),
        None if tree_mask_BTT is None else tree_mask_BTT.view(torch.uint8),
        None if sinks_H is None else sinks_H.float().contiguous(),
        None if alibi_H is None else alibi_H.float().contiguous(),
    )
    options = (scale, window, softcap, max_length)
    with torch.cuda.device(q_BTHD.device) if q_BTHD.is_cuda else nullcontext():
        LAUNCHES.run(
            options,
            tensors,
            (out_BTHD, lse_BHT),
            lambda: launches(CacheCall(*tensors, *options), out_BTHD, lse_BHT),
        )
    return out_BTHD, lse_BHT


@attention_with_cache.register_fake
def _(q_BTHD: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch, queries, heads, _d = q_BTHD.shape
    return q_BTHD.new_empty(q_BTHD.shape), q_BTHD.new_empty((batch, heads, queries), dtype=torch.float32)
