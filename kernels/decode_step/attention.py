"""Attention on the cache: a row, a kv head and a chunk of the slots at a time (Flash-Decoding, 2023).

A program's four warps walk its chunk, each with keys of its own, and join what they found at the end. Chunk
borders are multiples of one constant, whatever the length; the program that ends a row's last chunk
joins all of them in order. So a row's bits depend on nothing but the row.

Shapes: N rows, H query heads, K kv heads, G heads that share a kv head, D head dim, J chunks.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from lit_eff.kernels.attention.with_cache.combine import fold
from lit_eff.kernels.decode_step.ahead import span
from lit_eff.kernels.linear.tile import four_lanes_added_up

WARPS = tl.constexpr(4)  # of a program: `Plan.num_warps`
JOINED = tl.constexpr(4)  # chunks whose loads are on their way together


@triton.jit
def longest_of(row, rows, ROWS: tl.constexpr):
    """The greatest position of any row."""
    b_last = tl.zeros([ROWS], tl.int32)
    for n in tl.range(0, rows, ROWS):
        o_n = n + tl.arange(0, ROWS)
        b_last = tl.maximum(b_last, tl.load(row.position + o_n, mask=o_n < rows, other=0))
    return tl.max(b_last, 0)


@triton.jit
def cache_ahead(
    cache, layer, rows, position, sequence, i, KV_HEADS: tl.constexpr, KEYS: tl.constexpr
):  # fmt: skip
    """Two spans: of the chunk of this program's first item, keys and values; a part for each kv head's."""
    PART: tl.constexpr = (KEYS + KV_HEADS - 1) // KV_HEADS
    items = rows * KV_HEADS
    first = i // items * KEYS + i % KV_HEADS * PART
    slots = tl.minimum(tl.minimum(PART, KEYS - i % KV_HEADS * PART), position - first)  # its own comes later
    o_first = layer * cache.stride_layer + sequence.to(tl.int64) * cache.stride_sequence
    o_first += first.to(tl.int64) * cache.stride_slot
    bytes = tl.maximum(slots, 0) * cache.stride_slot * (cache.k.dtype.element_ty.primitive_bitwidth // 8)
    return span(cache.k + o_first, bytes), span(cache.v + o_first, bytes)


@triton.jit
def attention_phase(
    row, cache, work, layer, rows, longest, position, sequence, chunks, scale, i, programs,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, GROUP_TILE: tl.constexpr,
    KEYS: tl.constexpr, WARP_KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``scale`` is that of the scores times log2 e; ``chunks`` those of a full cache (J); ``position`` and
    ``sequence`` the row's of this program's first item.
    """
    items = rows * KV_HEADS
    for item in tl.range(i, items * (longest // KEYS + 1), programs):
        i_chunk = item // items
        i_n = item % items // KV_HEADS
        if item != i:
            position = tl.load(row.position + i_n)
            sequence = tl.load(row.sequence + i_n)
        if i_chunk * KEYS <= position:
            chunk_phase(
                cache, work, layer, i_n, item % KV_HEADS, i_chunk, position, sequence.to(tl.int64), chunks,
                scale, HEADS, KV_HEADS, HEAD_DIM, GROUP_TILE, KEYS, WARP_KEYS, STAGES,
            )  # fmt: skip


@triton.jit
def chunk_phase(
    cache, work, layer, i_n, i_kv, i_chunk, position, sequence, chunks, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, GROUP_TILE: tl.constexpr,
    KEYS: tl.constexpr, WARP_KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    GROUP: tl.constexpr = HEADS // KV_HEADS
    o_g = tl.arange(0, GROUP_TILE)
    o_d = tl.arange(0, HEAD_DIM)
    m_g = o_g < GROUP
    i_head = i_n.to(tl.int64) * HEADS + i_kv * GROUP
    o_row = (i_head + o_g)[:, None] * HEAD_DIM + o_d[None, :]
    b_q = tl.load(work.query + o_row, mask=m_g[:, None], other=0.0, cache_modifier=".cg")
    o_head = layer * cache.stride_layer + sequence * cache.stride_sequence + i_kv * cache.stride_head
    b_queries = tl.broadcast_to(b_q[None], (WARPS, GROUP_TILE, HEAD_DIM))
    b_acc = tl.zeros([WARPS, GROUP_TILE, HEAD_DIM], tl.float32)
    b_max = tl.full([WARPS, GROUP_TILE], float("-inf"), tl.float32)
    b_sum = tl.zeros([WARPS, GROUP_TILE], tl.float32)
    o_key = tl.arange(0, WARPS)[:, None] * WARP_KEYS + tl.arange(0, WARP_KEYS)[None, :]
    first = i_chunk * KEYS
    stop = tl.minimum(first + KEYS, position + 1)
    for slot in tl.range(first, stop, WARPS * WARP_KEYS, num_stages=STAGES):
        m_key = (slot + o_key < stop)[:, :, None]
        o_tile = (slot + o_key).to(tl.int64)[:, :, None] * cache.stride_slot + (o_head + o_d)[None, None, :]
        b_k = tl.load(cache.k + o_tile, mask=m_key, other=0.0, cache_modifier=".cg")
        b_v = tl.load(cache.v + o_tile, mask=m_key, other=0.0, cache_modifier=".cg")
        b_scores = tl.dot(b_queries, tl.permute(b_k.to(b_q.dtype), (0, 2, 1)), input_precision="ieee")
        b_scores = tl.where((slot + o_key < stop)[:, None, :], b_scores, float("-inf"))
        b_new_max = tl.maximum(b_max, tl.max(b_scores, 2) * scale)
        b_reference = tl.where(b_new_max == float("-inf"), 0.0, b_new_max)
        # The multiply-adds are spelt out: left to the compiler, two kernels could round differently.
        b_exponent = tl.fma(b_scores, tl.full(b_scores.shape, scale, tl.float32), -b_reference[:, :, None])
        b_weight = tl.exp2(b_exponent)
        b_decay = tl.exp2(b_max - b_reference)
        b_max = b_new_max
        b_sum = tl.fma(b_sum, b_decay, tl.sum(b_weight, 2))
        b_acc *= b_decay[:, :, None]
        b_acc = tl.dot(b_weight.to(b_q.dtype), b_v.to(b_q.dtype), b_acc, input_precision="ieee")
    b_row_max = tl.max(b_max, 0)
    b_decay = tl.exp2(b_max - b_row_max[None, :])[:, :, None]
    b_acc = four_lanes_added_up(b_acc * b_decay, GROUP_TILE, HEAD_DIM)
    b_sum = tl.max(four_lanes_added_up(b_sum[:, :, None] * b_decay, GROUP_TILE, 1), 1)
    b_max = b_row_max

    parts = position // KEYS + 1
    p_attended = work.attended + o_row
    if parts == 1:
        b_out = (b_acc / b_sum[:, None]).to(work.attended.dtype.element_ty)
        tl.store(p_attended, b_out, mask=m_g[:, None])
    else:
        o_part = (i_head + o_g) * chunks
        tl.store(work.maxima + o_part + i_chunk, b_max, mask=m_g)
        tl.store(work.sums + o_part + i_chunk, b_sum, mask=m_g)
        p_partial = work.partial + o_part[:, None] * HEAD_DIM + o_d[None, :]
        tl.store(p_partial + i_chunk * HEAD_DIM, b_acc, mask=m_g[:, None])
        tl.debug_barrier()
        p_finished = work.finished + i_n * KV_HEADS + i_kv
        if tl.atomic_add(p_finished, 1, sem="acq_rel", scope="gpu") == parts - 1:
            tl.debug_barrier()
            b_out = joined(work, p_partial, o_part, m_g, parts, GROUP_TILE, HEAD_DIM)
            tl.store(p_attended, b_out.to(work.attended.dtype.element_ty), mask=m_g[:, None])
            tl.store(p_finished, 0)


@triton.jit
def joined(work, p_partial, o_part, m_g, parts, GROUP_TILE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """All parts of a row in order; loads past the last part yield what changes no bit."""
    b_acc = tl.zeros([GROUP_TILE, HEAD_DIM], tl.float32)
    b_max = tl.full([GROUP_TILE], float("-inf"), tl.float32)
    b_sum = tl.zeros([GROUP_TILE], tl.float32)
    for part in tl.range(0, parts, JOINED):
        loaded = ()
        for j in tl.static_range(JOINED):
            m_part = m_g & (part + j < parts)
            b_next_max = tl.load(
                work.maxima + o_part + part + j, mask=m_part, other=float("-inf"), cache_modifier=".cg"
            )
            b_next_sum = tl.load(work.sums + o_part + part + j, mask=m_part, other=0.0, cache_modifier=".cg")
            b_next = tl.load(
                p_partial + (part + j) * HEAD_DIM, mask=m_part[:, None], other=0.0, cache_modifier=".cg"
            )
            loaded += ((b_next, b_next_max, b_next_sum),)  # type: ignore[assignment]
        for j in tl.static_range(JOINED):
            b_acc, b_max, b_sum = fold(b_acc, b_max, b_sum, loaded[j][0], loaded[j][1], loaded[j][2])
    return b_acc / tl.where(m_g, b_sum, 1.0)[:, None]
