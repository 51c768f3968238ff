"""Joining the parts of a row by their log-sum-exp: chunks to segments, segments to the result, in order.

The split kernel joins with the same functions what one program walks, hence to the same bits.

Shapes: B batch, T query length, S cache slots, H query heads, K kv heads, D head dim.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lit_eff.kernels.attention.with_cache.call import CacheCall, Partials
from lit_eff.kernels.attention.with_cache.tiles import Unit
from lit_eff.profiling.launch import Launch

ROUND = 16  # parts whose loads are on their way together


@triton.jit
def row_tile(
    p_lengths, p_query_lengths, i_b, first_row, o_row, queries, capacity, group, window,
    ROWS: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """Where the rows ``o_row``, ROWS from the first, stand: row r is query r // group, head r % group.

    Returns the tokens before the queries, each row's query, slot and last slot seen (-1: it sees nothing),
    and the slots [start, stop) that any of the rows sees.
    """
    length = tl.load(p_lengths + i_b).to(tl.int32)
    count = queries
    if p_query_lengths is not None:
        count = tl.minimum(tl.load(p_query_lengths + i_b).to(tl.int32), queries)
    o_t = o_row // group
    o_slot = length + o_t
    o_last = tl.where(o_t < count, tl.minimum(o_slot, capacity - 1), -1)
    first_t = first_row // group
    last_t = tl.minimum((first_row + ROWS - 1) // group, count - 1)
    stop = tl.where(first_t <= last_t, tl.minimum(length + last_t + 1, capacity), 0)
    start = length * 0
    if WINDOWED:
        start = tl.maximum(length + first_t - window + 1, 0)
    return length, o_t, o_slot, o_last, start, stop


@triton.jit
def spread(b_row, b_tile):
    """One number a row over its tile; a single row is a vector, and its number a scalar."""
    if len(b_tile.shape) == 2:
        b_row = tl.broadcast_to(b_row[:, None], b_tile.shape)
    else:
        b_row = tl.full(b_tile.shape, b_row, tl.float32)
    return b_row


@triton.jit
def fold(b_acc, b_max, b_sum, b_next_acc, b_next_max, b_next_sum):
    """Join the next part to what stands so far. A part of which a row sees nothing changes no bit of it.

    The fused multiply-adds are spelt out: left to the compiler, two kernels could round differently.
    """
    b_new_max = tl.maximum(b_max, b_next_max)
    b_reference = tl.where(b_new_max == float("-inf"), 0.0, b_new_max)
    b_decay = tl.exp2(b_max - b_reference)
    b_weight = tl.exp2(b_next_max - b_reference)
    b_sum = tl.fma(b_sum, b_decay, b_next_sum * b_weight)
    b_acc = tl.fma(b_acc, spread(b_decay, b_acc), b_next_acc * spread(b_weight, b_acc))
    return b_acc, b_new_max, b_sum


@triton.jit
def finish(b_acc, b_max, b_sum, p_sink, m_row):
    """Take in the sink and normalise: output and natural log-sum-exp."""
    if p_sink is not None:
        b_sink = tl.load(p_sink, mask=m_row, other=float("-inf")) * 1.4426950408889634  # log2 e
        b_one = tl.where(m_row, 1.0, 0.0)
        b_acc, b_max, b_sum = fold(b_acc, b_max, b_sum, 0.0, b_sink, b_one)
    # A row that saw nothing has a maximum of -inf and a sum of 0, divided as 1: output 0, log-sum-exp -inf.
    b_sum = tl.where(b_sum == 0.0, 1.0, b_sum)
    b_acc = b_acc / spread(b_sum, b_acc)
    return b_acc, (b_max + tl.log2(b_sum)) * 0.6931471805599453  # ln 2: the scores are in base 2


@triton.jit
def cache_combine_kernel(
    p_partial, p_max, p_sum, p_out, p_lse, p_lengths, p_query_lengths, p_sinks,
    queries, capacity, group, kv_heads, parts, window,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, SEGMENT: tl.constexpr,
    UNIT: tl.constexpr, WINDOWED: tl.constexpr, SPAN: tl.constexpr, ROUND: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    i_row = tl.program_id(0) % (queries * group)
    i_kv = tl.program_id(0) // (queries * group)
    i_b = tl.program_id(1).to(tl.int64)
    _length, i_t, _slot, last_slot, start, stop = row_tile(
        p_lengths, p_query_lengths, i_b, i_row, i_row, queries, capacity, group, window, 1, WINDOWED
    )
    i_h = i_kv * group + i_row % group
    first, last = start // UNIT, tl.cdiv(stop, UNIT)
    o_d = tl.arange(0, BLOCK_D)
    i_partial = (i_b * kv_heads + i_kv) * parts * (queries * group) + i_row
    b_acc, b_max, b_sum = tl.zeros([BLOCK_D], tl.float32), float("-inf"), 0.0
    if PDL:  # so far nothing was read that the split kernel writes
        tl.extra.cuda.gdc_wait()
    for span in range(first // SPAN, tl.cdiv(last, SPAN)):
        b_seg_acc, b_seg_max, b_seg_sum = tl.zeros([BLOCK_D], tl.float32), float("-inf"), 0.0
        for i_round in tl.static_range(SPAN // ROUND):
            loaded = ()
            for i in tl.static_range(ROUND):  # all on their way before the first is joined
                part = span * SPAN + i_round * ROUND + i
                m_part = (part >= first) & (part < last)
                i_part = i_partial + part * (queries * group)
                b_part = tl.load(
                    p_partial + i_part * HEAD_DIM + o_d, mask=m_part & (o_d < HEAD_DIM), other=0.0
                )
                b_part_max = tl.load(p_max + i_part, mask=m_part, other=float("-inf"))
                b_part_sum = tl.load(p_sum + i_part, mask=m_part, other=0.0)
                loaded += ((b_part, b_part_max, b_part_sum),)  # type: ignore[assignment]
            for i in tl.static_range(ROUND):
                if UNIT == SEGMENT:
                    b_acc, b_max, b_sum = fold(b_acc, b_max, b_sum, loaded[i][0], loaded[i][1], loaded[i][2])
                else:
                    b_seg_acc, b_seg_max, b_seg_sum = fold(
                        b_seg_acc, b_seg_max, b_seg_sum, loaded[i][0], loaded[i][1], loaded[i][2]
                    )
        if UNIT != SEGMENT:
            b_acc, b_max, b_sum = fold(b_acc, b_max, b_sum, b_seg_acc, b_seg_max, b_seg_sum)
    b_acc, b_lse = finish(b_acc, b_max, b_sum, None if p_sinks is None else p_sinks + i_h, last_slot >= 0)
    heads = kv_heads * group
    tl.store(p_lse + (i_b * heads + i_h) * queries + i_t, b_lse)
    p_row = p_out + ((i_b * queries + i_t) * heads + i_h) * HEAD_DIM
    tl.store(p_row + o_d, b_acc.to(p_out.dtype.element_ty), mask=o_d < HEAD_DIM)


def combine_launch(call: CacheCall, partials: Partials, out_BTHD: Tensor, lse_BHT: Tensor) -> Launch:
    """The launch that joins ``partials`` into contiguous ``out_BTHD`` and ``lse_BHT``, one program a row."""
    # Chunks are taken a segment at a time, segments as many as are loaded at a time.
    chunks = call.tiles.segment // call.tiles.chunk
    span = chunks if call.deal.unit is Unit.CHUNK else ROUND
    arguments = {
        **partials.arguments(),
        **call.row_arguments(),
        "p_out": out_BTHD,
        "p_lse": lse_BHT,
        "p_sinks": call.sinks_H,
        "SPAN": span,
        "ROUND": min(span, ROUND),
        "PDL": call.overlaps,
    }
    grid = (call.rows * call.kv_heads, call.batch)
    return Launch(cache_combine_kernel, grid, arguments, num_warps=1, num_stages=1, early=call.overlaps)
