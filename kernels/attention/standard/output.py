"""O = PV, from HBM: line 3 of standard attention (Dao et al. 2022, Algorithm 0).

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
def standard_output_kernel(
    p_weights, p_v, p_out,
    stride_vb, stride_vr, stride_vh, stride_vd,
    stride_ob, stride_or, stride_oh, stride_od,
    queries, keys, group,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """All weights are read, zeros too: a matrix product knows nothing of masks."""
    first = tl.program_id(0) * BLOCK_M
    i_h = tl.program_id(1).to(tl.int64)
    i_b = tl.program_id(2).to(tl.int64)
    o_m = first + tl.arange(0, BLOCK_M)
    p_v += i_b * stride_vb + (i_h // group) * stride_vh
    p_weights += ((i_b * tl.num_programs(1) + i_h) * queries + first) * keys
    o_p = tl.arange(0, BLOCK_M)[:, None] * keys + tl.arange(0, BLOCK_N)[None, :]
    b_out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for n in tl.range(0, keys, BLOCK_N):
        o_n = n + tl.arange(0, BLOCK_N)
        m_p = (o_m < queries)[:, None] & (o_n < keys)[None, :]
        b_p = tl.load(p_weights + n + o_p, mask=m_p, other=0.0)
        p_keys, m_keys = head_rows(p_v, stride_vr, stride_vd, n, keys, HEAD_DIM, BLOCK_N, BLOCK_D)
        b_v = tl.load(p_keys, mask=m_keys, other=0.0)
        b_out = tl.dot(b_p, b_v, b_out, input_precision="ieee")
    p_out += i_b * stride_ob + i_h * stride_oh
    p_tile, m_tile = head_rows(p_out, stride_or, stride_od, first, queries, HEAD_DIM, BLOCK_M, BLOCK_D)
    tl.store(p_tile, b_out.to(p_out.dtype.element_ty), mask=m_tile)


def output_launch(call: AttentionCall, weights_BHTS: Tensor, out_BTHD: Tensor) -> Launch:
    """The launch that fills ``out_BTHD`` from the contiguous ``weights_BHTS``."""
    batch, queries, heads, head_dim = call.q_BTHD.shape
    keys, kv_heads = call.k_BSKD.shape[1:3]
    tiles = product_tiles(head_dim, call.q_BTHD.element_size())
    arguments = {
        "p_weights": weights_BHTS,
        "p_v": call.v_BSKD,
        "p_out": out_BTHD,
        **strides("v", call.v_BSKD),
        **strides("o", out_BTHD),
        "queries": queries,
        "keys": keys,
        "group": heads // kv_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_D": padded_head_dim(head_dim),
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
    }
    grid = (triton.cdiv(queries, tiles.block_m), heads, batch)
    return Launch(standard_output_kernel, grid, arguments, tiles.num_warps, tiles.num_stages)
