"""S = scale QK^T, masked, to HBM: line 1 of standard attention (Dao et al. 2022, Algorithm 0).

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.kernels.attention.standard.rows import head_rows, strides
from lit_eff.kernels.attention.standard.tiles import product_tiles
from lit_eff.kernels.attention.tiles import padded_head_dim
from lit_eff.profiling.launch import Launch


@triton.jit
def standard_scores_kernel(
    p_q, p_k, p_scores,
    stride_qb, stride_qr, stride_qh, stride_qd,
    stride_kb, stride_kr, stride_kh, stride_kd,
    queries, keys, group, window, scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """Every score is computed and written, those that the mask hides as -inf: nothing is skipped."""
    first = tl.program_id(0) * BLOCK_M
    i_h = tl.program_id(1).to(tl.int64)
    i_b = tl.program_id(2).to(tl.int64)
    o_m = first + tl.arange(0, BLOCK_M)
    o_slot = o_m + (keys - queries)
    p_q += i_b * stride_qb + i_h * stride_qh
    p_tile, m_tile = head_rows(p_q, stride_qr, stride_qd, first, queries, HEAD_DIM, BLOCK_M, BLOCK_D)
    b_q = tl.load(p_tile, mask=m_tile, other=0.0)
    p_k += i_b * stride_kb + (i_h // group) * stride_kh
    p_scores += ((i_b * tl.num_programs(1) + i_h) * queries + first) * keys
    o_s = tl.arange(0, BLOCK_M)[:, None] * keys + tl.arange(0, BLOCK_N)[None, :]
    for n in tl.range(0, keys, BLOCK_N):
        o_n = n + tl.arange(0, BLOCK_N)
        p_keys, m_keys = head_rows(p_k, stride_kr, stride_kd, n, keys, HEAD_DIM, BLOCK_N, BLOCK_D)
        b_k = tl.load(p_keys, mask=m_keys, other=0.0)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale
        o_ahead = o_slot[:, None] - o_n[None, :]
        if CAUSAL:
            b_s = tl.where(o_ahead >= 0, b_s, float("-inf"))
        if WINDOWED:
            b_s = tl.where(tl.abs(o_ahead) < window, b_s, float("-inf"))
        m_s = (o_m < queries)[:, None] & (o_n < keys)[None, :]
        tl.store(p_scores + n + o_s, b_s.to(p_scores.dtype.element_ty), mask=m_s)


def scores_launch(call: AttentionCall, scores_BHTS: Tensor) -> Launch:
    """The launch that fills the contiguous ``scores_BHTS``, in the dtype of the inputs."""
    batch, queries, heads, head_dim = call.q_BTHD.shape
    keys, kv_heads = call.k_BSKD.shape[1:3]
    tiles = product_tiles(head_dim, call.q_BTHD.element_size())
    arguments = {
        "p_q": call.q_BTHD,
        "p_k": call.k_BSKD,
        "p_scores": scores_BHTS,
        **strides("q", call.q_BTHD),
        **strides("k", call.k_BSKD),
        "queries": queries,
        "keys": keys,
        "group": heads // kv_heads,
        "window": call.window or 0,
        "scale": call.scale,
        "HEAD_DIM": head_dim,
        "BLOCK_D": padded_head_dim(head_dim),
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "CAUSAL": call.causal,
        "WINDOWED": call.window is not None,
    }
    grid = (triton.cdiv(queries, tiles.block_m), heads, batch)
    return Launch(standard_scores_kernel, grid, arguments, tiles.num_warps, tiles.num_stages)
