"""The Gluon forward kernel for Hopper: FlashAttention-3's ideas (Shah et al. 2024, sections 3.1 and 3.2).

One warp is the producer: it keeps two rings of K and V tiles full through the copy engine (TMA) and never
computes. Each of the consumer warpgroups owns 64 queries. A consumer issues the product Q K^T of the next
key block and the product P V of the current one together, and turns the former into weights while the
tensor cores still work on the latter (`_step`). Programs are persistent: one a multiprocessor, so that the
producer fetches the next tile's queries and keys while the consumers finish the last one.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
Prefixes: i_ index, o_ offset, m_ mask, b_ register tile, s_ shared memory, d_ TMA descriptor.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from typing import NamedTuple

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.kernels.attention.hopper.pipeline import (
    allocate_barriers,
    allocate_tiles,
    as_matrix,
    load_tile,
    multiprocessors,
    row_tiles,
    turn_give,
    turn_wait,
    wait_empty,
    wait_full,
)
from lit_eff.profiling.launch import Launch

ROWS = gl.constexpr(64)  # queries of a consumer: the height of a warpgroup's matrix instruction


@gluon.jit
def _tile_of(i, sizes):
    """The i-th tile as (query tile, head, batch): heads whose keys fit in L2 together, longest rows first."""
    query_tiles, heads, _, batch, together = sizes
    of_group = together * query_tiles
    first_head = i // of_group * together
    width = gl.minimum(together, heads * batch - first_head)
    i_bh = first_head + i % of_group % width
    i_m = query_tiles - 1 - i % of_group // width
    return i_m, i_bh % heads, i_bh // heads


@gluon.jit
def _tile_index(turn):
    """This program's tile in a round over all programs; odd rounds run backwards, which evens out lengths."""
    programs = gl.num_programs(0)
    place = gl.program_id(0)
    return turn * programs + gl.where(turn % 2 == 0, place, programs - 1 - place)


@gluon.jit
def _key_blocks(first, last, lengths, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr):
    """Key blocks that the queries [first, last] see: (start, stop of those that need no mask, stop)."""
    queries, keys = lengths
    reach, inner_reach = keys, keys
    if CAUSAL:
        reach = gl.minimum(keys, last + 1 + keys - queries)
        inner_reach = gl.minimum(keys, first + 1 + keys - queries)
    stop = gl.maximum(gl.cdiv(reach, BLOCK_N), 1)  # tiles that see nothing walk one masked block too
    inner_stop = gl.minimum(gl.maximum(inner_reach, 0) // BLOCK_N, stop - 1)
    return inner_stop, stop


@gluon.jit
def _produce(descriptors, tiles, barriers, sizes, lengths, CONSUMERS: gl.constexpr, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr):
    d_q, d_k, d_v, _ = descriptors
    s_q, s_k, s_v, _ = tiles
    q_full, q_empty, k_full, k_empty, v_full, v_empty = barriers
    query_tiles, heads, group, batch, _ = sizes
    BLOCK_M: gl.constexpr = CONSUMERS * ROWS
    SLOTS: gl.constexpr = s_k.shape[0]
    total = query_tiles * heads * batch
    n = 0
    for turn in range(gl.cdiv(total, gl.num_programs(0))):
        i = _tile_index(turn)
        if i < total:
            i_m, i_h, i_b = _tile_of(i, sizes)
            i_kv = i_h // group
            first = i_m * BLOCK_M
            _, stop = _key_blocks(first, gl.minimum(first + BLOCK_M, lengths[0]) - 1, lengths, BLOCK_N, CAUSAL)
            for c in gl.static_range(CONSUMERS):
                mbarrier.wait(q_empty.index(c), (turn & 1) ^ 1)
                load_tile(d_q, i_b, first + c * ROWS, i_h, q_full.index(c), s_q.index(c))
            wait_empty(k_empty, n)
            load_tile(d_k, i_b, (stop - 1) * BLOCK_N, i_kv, k_full.index(n % SLOTS), s_k.index(n % SLOTS))
            for j in range(stop - 1):
                i_n = stop - 1 - j
                wait_empty(k_empty, n + 1)
                load_tile(d_k, i_b, (i_n - 1) * BLOCK_N, i_kv, k_full.index((n + 1) % SLOTS), s_k.index((n + 1) % SLOTS))
                wait_empty(v_empty, n)
                load_tile(d_v, i_b, i_n * BLOCK_N, i_kv, v_full.index(n % SLOTS), s_v.index(n % SLOTS))
                n += 1
            wait_empty(v_empty, n)
            load_tile(d_v, i_b, 0, i_kv, v_full.index(n % SLOTS), s_v.index(n % SLOTS))
            n += 1


@gluon.jit
def _weights(b_s, b_max, b_sum, i_n, o_stop, scale, MASKED: gl.constexpr):
    """Scores to weights relative to the running maximum, which stays unscaled: (weights, max, sum, decay)."""
    BLOCK_N: gl.constexpr = b_s.shape[1]
    if MASKED:
        o_n = i_n * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(0, b_s.type.layout))
        b_s = gl.where(o_n[None, :] < o_stop[:, None], b_s, float("-inf"))
    b_new_max = gl.maximum(b_max, gl.max(b_s, 1))
    b_reference = b_new_max * scale
    if MASKED:  # a query that has seen no key yet: -inf minus -inf would be NaN
        b_reference = gl.where(b_new_max == float("-inf"), 0.0, b_reference)
    b_p = gl.exp2(b_s * scale - b_reference[:, None])
    b_decay = gl.exp2(b_max * scale - b_reference)
    return b_p, b_new_max, b_sum * b_decay + gl.sum(b_p, 1), b_decay


@gluon.jit
def _walk_keys(
    b_acc, b_p, b_max, b_sum, n, top, bottom, s_mine, tiles, barriers, o_stop, scale,
    WHICH: gl.constexpr, CONSUMERS: gl.constexpr, PING_PONG: gl.constexpr, MASKED: gl.constexpr,
):
    """Fold the key blocks from ``top`` - 1 down to ``bottom`` into the running output, sum and maximum."""
    _, s_k, s_v, _ = tiles
    _, _, k_full, k_empty, v_full, v_empty = barriers
    SLOTS: gl.constexpr = s_k.shape[0]
    BLOCK_N: gl.constexpr = s_k.shape[2]
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    output: gl.constexpr = b_acc.type.layout
    b_zero = gl.zeros([ROWS, BLOCK_N], gl.float32, scores)
    for j in range(top - bottom):
        wait_full(k_full, n + 1)
        if PING_PONG:
            turn_wait(WHICH)
        b_s = warpgroup_mma(s_mine, as_matrix(s_k.index((n + 1) % SLOTS)).permute((1, 0)), b_zero, use_acc=False, is_async=True)
        wait_full(v_full, n)
        b_acc = warpgroup_mma(b_p, as_matrix(s_v.index(n % SLOTS)), b_acc, is_async=True)
        if PING_PONG:
            turn_give((WHICH + 1) % CONSUMERS)
        b_s = warpgroup_mma_wait(1, [b_s])
        mbarrier.arrive(k_empty.index((n + 1) % SLOTS), count=1)
        b_w, b_max, b_sum, b_decay = _weights(b_s, b_max, b_sum, top - 1 - j, o_stop, scale, MASKED)
        # What the wait is given must be computed before it: the softmax runs while P V is in flight.
        wait_full(v_full, n)
        b_acc, b_w, b_sum = warpgroup_mma_wait(0, [b_acc, b_w, b_sum])
        b_p = gl.convert_layout(b_w.to(s_v.dtype), b_p.type.layout, assert_trivial=True)
        mbarrier.arrive(v_empty.index(n % SLOTS), count=1)
        b_acc = b_acc * gl.convert_layout(b_decay, gl.SliceLayout(1, output))[:, None]
        n += 1
    return b_acc, b_p, b_max, b_sum, n


@gluon.jit
def _consume(
    descriptors, tiles, barriers, sizes, lengths, p_lse, scale,
    WHICH: gl.constexpr, CONSUMERS: gl.constexpr, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr,
    RAGGED: gl.constexpr, PING_PONG: gl.constexpr,
):
    _, _, d_v, d_out = descriptors
    s_q, s_k, s_v, s_out = tiles
    q_full, q_empty, k_full, k_empty, v_full, v_empty = barriers
    query_tiles, heads, _, batch, _ = sizes
    queries, keys = lengths
    HEAD_DIM: gl.constexpr = s_q.shape[4]
    BLOCK_M: gl.constexpr = CONSUMERS * ROWS
    SLOTS: gl.constexpr = s_k.shape[0]
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    output: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    weights: gl.constexpr = gl.DotOperandLayout(0, output, 2)

    total = query_tiles * heads * batch
    n = 0
    if PING_PONG and WHICH == CONSUMERS - 1:
        turn_give(0)
    for turn in range(gl.cdiv(total, gl.num_programs(0))):
        i = _tile_index(turn)
        if i < total:
            i_m, i_h, i_b = _tile_of(i, sizes)
            first = i_m * BLOCK_M
            inner_stop, stop = _key_blocks(first, gl.minimum(first + BLOCK_M, queries) - 1, lengths, BLOCK_N, CAUSAL)
            o_m = first + WHICH * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, scores))
            o_stop = gl.full([ROWS], 0, gl.int32, gl.SliceLayout(1, scores)) + keys
            if CAUSAL:
                o_stop = gl.minimum(o_stop, o_m + 1 + keys - queries)

            b_zero = gl.zeros([ROWS, BLOCK_N], gl.float32, scores)
            b_max = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, scores))
            b_sum = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, scores))
            b_acc = gl.zeros([ROWS, HEAD_DIM], gl.float32, output)
            s_mine = as_matrix(s_q.index(WHICH))

            mbarrier.wait(q_full.index(WHICH), turn & 1)
            wait_full(k_full, n)
            b_s = warpgroup_mma(s_mine, as_matrix(s_k.index(n % SLOTS)).permute((1, 0)), b_zero, use_acc=False, is_async=True)
            b_s = warpgroup_mma_wait(0, [b_s])
            mbarrier.arrive(k_empty.index(n % SLOTS), count=1)
            b_p, b_max, b_sum, b_decay = _weights(b_s, b_max, b_sum, stop - 1, o_stop, scale, CAUSAL or RAGGED)
            b_p = gl.convert_layout(b_p.to(s_v.dtype), weights, assert_trivial=True)
            if CAUSAL or RAGGED:
                b_acc, b_p, b_max, b_sum, n = _walk_keys(
                    b_acc, b_p, b_max, b_sum, n, stop - 1, inner_stop, s_mine, tiles, barriers, o_stop, scale, WHICH, CONSUMERS, PING_PONG, True)
            b_acc, b_p, b_max, b_sum, n = _walk_keys(
                b_acc, b_p, b_max, b_sum, n, inner_stop, 0, s_mine, tiles, barriers, o_stop, scale, WHICH, CONSUMERS, PING_PONG, False)
            mbarrier.arrive(q_empty.index(WHICH), count=1)
            wait_full(v_full, n)
            b_acc = warpgroup_mma(b_p, as_matrix(s_v.index(n % SLOTS)), b_acc, is_async=True)
            b_divisor = gl.where(b_sum == 0.0, 1.0, b_sum)
            b_lse = (b_max * scale + gl.log2(b_divisor)) * 0.6931471805599453
            gl.store(p_lse + (i_b * heads + i_h).to(gl.int64) * queries + o_m, b_lse, mask=o_m < queries)
            b_acc = warpgroup_mma_wait(0, [b_acc])
            mbarrier.arrive(v_empty.index(n % SLOTS), count=1)
            n += 1
            b_acc = b_acc * gl.convert_layout(1.0 / b_divisor, gl.SliceLayout(1, output))[:, None]
            tma.store_wait(0)
            as_matrix(s_out.index(WHICH)).store(b_acc.to(s_out.dtype))
            fence_async_shared()
            tma.async_copy_shared_to_global(d_out, [i_b, first + WHICH * ROWS, i_h, 0], s_out.index(WHICH))
    if PING_PONG and WHICH == 0:
        turn_wait(0)
    tma.store_wait(0)


SIZES = ["queries", "keys", "query_tiles", "heads", "group", "batch", "together"]


@gluon.jit(do_not_specialize=SIZES)
def attention_forward_kernel(
    d_q, d_k, d_v, d_out, p_lse,
    queries, keys, query_tiles, heads, group, batch, together, scale,
    CONSUMERS: gl.constexpr, BLOCK_N: gl.constexpr, SLOTS: gl.constexpr,
    CAUSAL: gl.constexpr, RAGGED: gl.constexpr, PING_PONG: gl.constexpr, REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):
    descriptors = (d_q, d_k, d_v, d_out)
    tiles = (allocate_tiles(d_q, CONSUMERS), allocate_tiles(d_k, SLOTS), allocate_tiles(d_v, SLOTS), allocate_tiles(d_out, CONSUMERS))
    barriers = (
        allocate_barriers(CONSUMERS, 1), allocate_barriers(CONSUMERS, 1),
        allocate_barriers(SLOTS, 1), allocate_barriers(SLOTS, CONSUMERS),
        allocate_barriers(SLOTS, 1), allocate_barriers(SLOTS, CONSUMERS),
    )
    sizes = (query_tiles, heads, group, batch, together)
    lengths = (queries, keys)
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (_consume, (descriptors, tiles, barriers, sizes, lengths, p_lse, scale, 0, CONSUMERS, BLOCK_N, CAUSAL, RAGGED, PING_PONG)),
                (_consume, (descriptors, tiles, barriers, sizes, lengths, p_lse, scale, 1, CONSUMERS, BLOCK_N, CAUSAL, RAGGED, PING_PONG)),
                (_produce, (descriptors, tiles, barriers, sizes, lengths, CONSUMERS, BLOCK_N, CAUSAL)),
            ],
            [4, 1],
            [REGISTERS, PRODUCER_REGISTERS],
        )
    else:
        gl.warp_specialize(
            [
                (_consume, (descriptors, tiles, barriers, sizes, lengths, p_lse, scale, 0, CONSUMERS, BLOCK_N, CAUSAL, RAGGED, PING_PONG)),
                (_consume, (descriptors, tiles, barriers, sizes, lengths, p_lse, scale, 1, CONSUMERS, BLOCK_N, CAUSAL, RAGGED, PING_PONG)),
                (_consume, (descriptors, tiles, barriers, sizes, lengths, p_lse, scale, 2, CONSUMERS, BLOCK_N, CAUSAL, RAGGED, PING_PONG)),
                (_produce, (descriptors, tiles, barriers, sizes, lengths, CONSUMERS, BLOCK_N, CAUSAL)),
            ],
            [4, 4, 1],
            [REGISTERS, REGISTERS, PRODUCER_REGISTERS],
        )


class Shape(NamedTuple):
    """``consumers`` warpgroups of 64 queries by ``block_n`` keys a step, ``slots`` tiles in each ring."""

    consumers: int
    block_n: int
    slots: int
    ping_pong: bool = False
    l2_bytes: int = 24 << 20


def forward_shape(head_dim: int) -> Shape:
    return Shape(2, 128, 2) if head_dim == 128 else Shape(3, 128, 3)


def forward_launch(call: AttentionCall, out_BTHD: Tensor, lse_BHT: Tensor, shape: Shape | None = None) -> Launch:
    """The launch that fills ``out_BTHD`` and the contiguous float32 ``lse_BHT``; see `supported`."""
    shape = shape or forward_shape(call.head_dim)
    query_tiles = triton.cdiv(call.queries, 64 * shape.consumers)
    tiles = query_tiles * call.heads * call.batch
    head_bytes = 2 * call.keys * call.head_dim * call.k_BSKD.element_size()
    group = call.heads // call.k_BSKD.shape[2]
    arguments = {
        "d_q": row_tiles(call.q_BTHD, 64),
        "d_k": row_tiles(call.k_BSKD, shape.block_n),
        "d_v": row_tiles(call.v_BSKD, shape.block_n),
        "d_out": row_tiles(out_BTHD, 64),
        "p_lse": lse_BHT,
        "queries": call.queries,
        "keys": call.keys,
        "query_tiles": query_tiles,
        "heads": call.heads,
        "group": group,
        "batch": call.batch,
        "together": max(1, shape.l2_bytes // head_bytes) * group,
        "scale": call.rule().score_scale,
        "CONSUMERS": shape.consumers,
        "BLOCK_N": shape.block_n,
        "SLOTS": shape.slots,
        "CAUSAL": call.causal,
        "RAGGED": call.keys % shape.block_n != 0,
        "PING_PONG": shape.ping_pong,
        "REGISTERS": 240 if shape.consumers == 2 else 160,
        "PRODUCER_REGISTERS": 24 if shape.consumers == 2 else 32,
    }
    programs = min(tiles, multiprocessors(call.q_BTHD.device))
    return Launch(attention_forward_kernel, (programs,), arguments, num_warps=4, max_registers=168 if shape.consumers == 2 else 128)
