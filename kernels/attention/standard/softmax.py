"""P = softmax(S), from HBM to HBM: line 2 of standard attention (Dao et al. 2022, Algorithm 0).

Shapes: B batch, T query length, S key length, H query heads.
Prefixes: p_ pointer, o_ offset, m_ mask, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lit_eff.kernels.attention.standard.tiles import SOFTMAX_WARPS, softmax_tiles
from lit_eff.profiling.launch import Launch


@triton.jit
def _softmax_statistics(b_s, b_max, b_sum):
    """Fold a tile of scores into each row's (maximum, sum of exponentials relative to it)."""
    b_new_max = tl.maximum(b_max, tl.max(b_s, 1))
    b_reference = tl.where(b_new_max == float("-inf"), 0.0, b_new_max)  # -inf minus -inf would be NaN
    b_sum = b_sum * tl.exp(b_max - b_reference) + tl.sum(tl.exp(b_s - b_reference[:, None]), 1)
    return b_new_max, b_sum


@triton.jit
def _softmax_weights(b_s, b_max, b_sum):
    """Weights of a tile of scores; zeros for a row that sees no key."""
    b_reference = tl.where(b_max == float("-inf"), 0.0, b_max)
    b_total = tl.where(b_sum == 0.0, 1.0, b_sum)
    return tl.exp(b_s - b_reference[:, None]) / b_total[:, None]


@triton.jit
def standard_softmax_kernel(
    p_scores, p_weights, rows, keys,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """WHOLE rows fit the tile and are read once; longer ones are walked twice, statistics first."""
    o_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tl.arange(0, BLOCK_N)
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    o_tile = o_m[:, None] * keys + o_n[None, :]
    if WHOLE:
        m_tile = (o_m < rows)[:, None] & (o_n < keys)[None, :]
        b_s = tl.load(p_scores + o_tile, mask=m_tile, other=float("-inf")).to(tl.float32)
        b_max, b_sum = _softmax_statistics(b_s, b_max, b_sum)
        b_p = _softmax_weights(b_s, b_max, b_sum)
        tl.store(p_weights + o_tile, b_p.to(p_weights.dtype.element_ty), mask=m_tile)
    else:
        for n in tl.range(0, keys, BLOCK_N):
            m_tile = (o_m < rows)[:, None] & (n + o_n < keys)[None, :]
            b_s = tl.load(p_scores + n + o_tile, mask=m_tile, other=float("-inf")).to(tl.float32)
            b_max, b_sum = _softmax_statistics(b_s, b_max, b_sum)
        for n in tl.range(0, keys, BLOCK_N):
            m_tile = (o_m < rows)[:, None] & (n + o_n < keys)[None, :]
            b_s = tl.load(p_scores + n + o_tile, mask=m_tile, other=float("-inf")).to(tl.float32)
            b_p = _softmax_weights(b_s, b_max, b_sum)
            tl.store(p_weights + n + o_tile, b_p.to(p_weights.dtype.element_ty), mask=m_tile)


def softmax_launch(scores_BHTS: Tensor, weights_BHTS: Tensor) -> Launch:
    """The launch that fills ``weights_BHTS``; both are contiguous and of one dtype."""
    keys = scores_BHTS.shape[-1]
    rows = scores_BHTS.shape[:-1].numel()
    block_m, block_n = softmax_tiles(keys)
    arguments = {
        "p_scores": scores_BHTS,
        "p_weights": weights_BHTS,
        "rows": rows,
        "keys": keys,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "WHOLE": keys <= block_n,
    }
    return Launch(standard_softmax_kernel, (triton.cdiv(rows, block_m),), arguments, SOFTMAX_WARPS)
