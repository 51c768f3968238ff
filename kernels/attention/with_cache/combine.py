"""Joining the chunks of a row by their log-sum-exp, one after the other in the order of their slots.

The split kernel joins with the same functions when one program walks a whole row, hence to the same bits.

Shapes: B batch, T query length, S cache slots, H query heads, K kv heads, D head dim.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lit_eff.kernels.attention.with_cache.call import CacheCall, Partials
from lit_eff.profiling.launch import Launch

COMBINE_ROWS = 4  # a divisor of every row tile: a tile's programs wrote the chunks of all its rows


@triton.jit
def row_tile(
    p_lengths, p_query_lengths, i_b, i_tile, queries, capacity, group, window,
    ROWS: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """Where the rows of a tile stand: row r is query r // group, head r % group of the kv head.

    Returns the tokens before the queries, each row's number, query, slot and last slot seen (-1: the row sees
    nothing), and the slots [start, stop) that any row of the tile sees.
    """
    length = tl.load(p_lengths + i_b).to(tl.int32)
    count = queries
    if p_query_lengths is not None:
        count = tl.minimum(tl.load(p_query_lengths + i_b).to(tl.int32), queries)
    o_row = i_tile * ROWS + tl.arange(0, ROWS)
    o_t = o_row // group
    o_slot = length + o_t
    o_last = tl.where(o_t < count, tl.minimum(o_slot, capacity - 1), -1)
    first_t = i_tile * ROWS // group
    last_t = tl.minimum((i_tile * ROWS + ROWS - 1) // group, count - 1)
    stop = tl.where(first_t <= last_t, tl.minimum(length + last_t + 1, capacity), 0)
    start = 0
    if WINDOWED:
        start = tl.maximum(length + first_t - window + 1, 0)
    return length, o_row, o_t, o_slot, o_last, start, stop


@triton.jit
def fold(b_acc, b_max, b_sum, b_next_acc, b_next_max, b_next_sum):
    """Join the next chunk to what stands so far. A chunk of which a row sees nothing changes no bit of it.

    The fused multiply-adds are spelt out: left to the compiler, two kernels could round differently.
    """
    b_new_max = tl.maximum(b_max, b_next_max)
    b_reference = tl.where(b_new_max == float("-inf"), 0.0, b_new_max)
    b_decay = tl.exp2(b_max - b_reference)
    b_weight = tl.exp2(b_next_max - b_reference)
    b_sum = tl.fma(b_sum, b_decay, b_next_sum * b_weight)
    b_decay_2d = tl.broadcast_to(b_decay[:, None], b_acc.shape)
    b_acc = tl.fma(b_acc, b_decay_2d, b_next_acc * b_weight[:, None])
    return b_acc, b_new_max, b_sum


@triton.jit
def finish(
    b_acc, b_max, b_sum, o_row, o_t, o_last, i_b, i_kv, p_out, p_lse, p_sinks,
    queries, group, kv_heads,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Take in the sink, normalise, write output (B, T, H, D) and log-sum-exp (B, H, T), both contiguous."""
    o_h = i_kv * group + o_row % group
    m_row = o_row < queries * group
    m_there = m_row & (o_last >= 0)
    if p_sinks is not None:
        b_sink = tl.load(p_sinks + o_h, mask=m_there, other=float("-inf")) * 1.4426950408889634  # log2 e
        b_acc, b_max, b_sum = fold(
            b_acc, b_max, b_sum, tl.zeros_like(b_acc), b_sink, tl.where(m_there, 1.0, 0.0)
        )
    # A row that saw nothing has a maximum of -inf and a sum of 0, divided as 1: output 0, log-sum-exp -inf.
    b_sum = tl.where(b_sum == 0.0, 1.0, b_sum)
    b_acc = b_acc / b_sum[:, None]
    b_lse = (b_max + tl.log2(b_sum)) * 0.6931471805599453  # ln 2: the scores are in base 2
    heads = kv_heads * group
    tl.store(p_lse + (i_b * heads + o_h) * queries + o_t, b_lse, mask=m_row)
    o_d = tl.arange(0, BLOCK_D)
    p_rows = p_out + ((i_b * queries + o_t) * heads + o_h) * HEAD_DIM
    m_tile = m_row[:, None] & (o_d < HEAD_DIM)[None, :]
    tl.store(p_rows[:, None] + o_d[None, :], b_acc.to(p_out.dtype.element_ty), mask=m_tile)


@triton.jit
def cache_combine_kernel(
    p_partial, p_max, p_sum, p_out, p_lse, p_lengths, p_query_lengths, p_sinks,
    queries, capacity, group, kv_heads, chunks, window,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
    WINDOWED: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(queries * group, ROWS)
    i_tile = tl.program_id(0) % tiles
    i_kv = tl.program_id(0) // tiles
    i_b = tl.program_id(1).to(tl.int64)
    _length, o_row, o_t, _slot, o_last, start, stop = row_tile(
        p_lengths, p_query_lengths, i_b, i_tile, queries, capacity, group, window, ROWS, WINDOWED
    )
    first, last = start // CHUNK, tl.cdiv(stop, CHUNK)
    o_d = tl.arange(0, BLOCK_D)
    m_row = o_last >= 0  # nothing was written for the others
    m_tile = m_row[:, None] & (o_d < HEAD_DIM)[None, :]
    b_acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    b_max = tl.full([ROWS], float("-inf"), tl.float32)
    b_sum = tl.zeros([ROWS], tl.float32)
    for c in range(first, last, UNROLL):
        for i in tl.static_range(UNROLL):  # the loads of one round are all on their way before the first fold
            m_chunk = c + i < last
            o_partial = ((i_b * kv_heads + i_kv) * chunks + c + i) * (queries * group) + o_row
            b_next_max = tl.load(p_max + o_partial, mask=m_row & m_chunk, other=float("-inf"))
            b_next_sum = tl.load(p_sum + o_partial, mask=m_row & m_chunk, other=0.0)
            p_rows = p_partial + o_partial * HEAD_DIM
            b_next = tl.load(p_rows[:, None] + o_d[None, :], mask=m_tile & m_chunk, other=0.0)
            b_acc, b_max, b_sum = fold(b_acc, b_max, b_sum, b_next, b_next_max, b_next_sum)
    finish(
        b_acc, b_max, b_sum, o_row, o_t, o_last, i_b, i_kv, p_out, p_lse, p_sinks,
        queries, group, kv_heads, HEAD_DIM, BLOCK_D,
    )  # fmt: skip


def combine_launch(call: CacheCall, partials: Partials, out_BTHD: Tensor, lse_BHT: Tensor) -> Launch:
    """The launch that joins ``partials`` into the contiguous ``out_BTHD`` and ``lse_BHT``."""
    arguments = {
        **partials.arguments(),
        **call.row_arguments(),
        "p_out": out_BTHD,
        "p_lse": lse_BHT,
        "p_sinks": call.sinks_H,
        "chunks": partials.chunks,
        "ROWS": COMBINE_ROWS,
        "UNROLL": 8,
    }
    grid = (triton.cdiv(call.rows, COMBINE_ROWS) * call.kv_heads, call.batch)
    return Launch(cache_combine_kernel, grid, arguments, num_warps=4, num_stages=1)
