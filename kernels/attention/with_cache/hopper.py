"""The Gluon kernel for Hopper that walks the cache, to the same bits as the portable one in `split`.

One warp does nothing but load (`hopper_load`): it keeps rings of K and V tiles full, across chunks, units and
items, so that the memory never waits for the end of anything. One warpgroup computes.
That leaves it the registers for the sums of a chunk and of a segment at once. The arithmetic of a tile takes
less time than its bytes, so that it need not overlap itself. Programs are persistent, one a multiprocessor
(`hopper_items`).

Shapes: B batch, T query length, S cache slots, P pages a row, H query heads, K kv heads, D head dim.
Prefixes: p_ pointer, i_ index, o_ offset, m_ mask, b_ register tile, s_ shared memory, d_ TMA descriptor.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from lit_eff.kernels.attention.hopper.pipeline import multiprocessors, release, row_tiles, wait_full
from lit_eff.kernels.attention.hopper.turns import block_barrier
from lit_eff.kernels.attention.with_cache.call import CacheCall, Partials
from lit_eff.kernels.attention.with_cache.combine import finish, fold, spread
from lit_eff.kernels.attention.with_cache.combine import row_tile as place_rows
from lit_eff.kernels.attention.with_cache.hopper_items import Problem, item_of
from lit_eff.kernels.attention.with_cache.hopper_load import COLUMNS, allocate_ring, produce, tile_of
from lit_eff.kernels.attention.with_cache.tiles import Unit
from lit_eff.kernels.elementary import tanh
from lit_eff.profiling.launch import Launch

RING_BYTES = 32 * 1024  # of K, and of V: the more is under way, the less of it hits open pages of the memory
MAX_REGISTERS = 152  # a thread: what the loading warp's group leaves goes to the computing warps
PRODUCER_REGISTERS = gl.constexpr(56)


class Scores(NamedTuple):
    """How scores come about. A field that is None is a constant to the compiler: its code is gone."""

    score_scale: Any
    cap: Any
    p_alibi: Any
    p_tree: Any
    stride_tree_b: Any
    stride_tree_t: Any
    stride_tree_u: Any


class Queries(NamedTuple):
    """Queries (B, T, H, D) in memory."""

    p_q: Any
    stride_b: Any
    stride_t: Any
    stride_h: Any
    stride_d: Any


class Results(NamedTuple):
    """Where results go: of whole rows, or partial ones."""

    p_out: Any
    p_lse: Any
    p_sinks: Any
    p_partial: Any
    p_max: Any
    p_sum: Any
    parts: Any


class Rows(NamedTuple):
    """A tile's rows: query, slot, last slot seen (-1: none) and ALiBi slope of each."""

    o_t: Any
    o_slot: Any
    o_last: Any
    b_slope: Any


@gluon.constexpr_function
def _row_major(HEAD_DIM):
    """Four warps on (rows, HEAD_DIM) of 2-byte elements, 16 bytes a thread."""
    across = HEAD_DIM // 8
    return gl.BlockedLayout([1, 8], [32 // across, across], [4, 1], [1, 0])


@gluon.jit
def _load_queries(s_q, item, queries, problem):
    """The rows' queries, 0 past the last row, into shared memory once every warp has read what was there."""
    layout: gl.constexpr = _row_major(s_q.shape[1])
    o_row = item.first_row + gl.arange(0, s_q.shape[0], gl.SliceLayout(1, layout))
    o_d = gl.arange(0, s_q.shape[1], gl.SliceLayout(0, layout))
    o_h = item.i_kv * problem.group + o_row % problem.group
    p_rows = queries.p_q + item.i_b.to(gl.int64) * queries.stride_b
    p_rows = p_rows + (o_row // problem.group).to(gl.int64) * queries.stride_t + o_h * queries.stride_h
    m_tile = (o_row < problem.queries * problem.group)[:, None] & (o_d >= 0)[None, :]
    b_q = gl.load(p_rows[:, None] + o_d[None, :] * queries.stride_d, mask=m_tile, other=0.0)
    block_barrier()
    s_q.store(b_q)
    fence_async_shared()
    block_barrier()


@gluon.jit
def _clear_unseen(s_v, slot, item):
    """Make the values of slots that no row sees 0: they may hold anything, and 0 * NaN is NaN."""
    layout: gl.constexpr = _row_major(s_v.shape[1])
    o_n = slot + gl.arange(0, s_v.shape[0], gl.SliceLayout(1, layout))
    m_slot = (o_n >= item.start) & (o_n < item.stop)
    s_v.store(gl.where(m_slot[:, None], s_v.load(layout), 0.0))
    fence_async_shared()
    block_barrier()


@gluon.jit
def _granted(item, o_n, o_t, m_row, scores, problem):
    """Which of the call's own slots the tree mask grants each row: (rows, slots), true of older slots."""
    o_u = o_n - item.length
    p_rows = scores.p_tree + item.i_b.to(gl.int64) * scores.stride_tree_b
    p_rows = p_rows + o_t.to(gl.int64) * scores.stride_tree_t
    m_own = m_row[:, None] & ((o_u >= 0) & (o_u < problem.queries))[None, :]
    b_flags = gl.load(p_rows[:, None] + o_u[None, :] * scores.stride_tree_u, mask=m_own, other=0)
    return (b_flags != 0) | (o_u < 0)[None, :]


@gluon.jit
def _step(
    b_acc, b_max, b_sum, n, slot, s_q, keys, values, rows, item, scores, problem, WINDOWED: gl.constexpr
):  # fmt: skip
    """The n-th tile of slots into the chunk: `split.walk` says why so."""
    ROWS: gl.constexpr = s_q.shape[0]
    BLOCK_N: gl.constexpr = keys.tiles.shape[1]
    output: gl.constexpr = b_acc.type.layout
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    score_rows: gl.constexpr = gl.SliceLayout(1, layout)
    output_rows: gl.constexpr = gl.SliceLayout(1, output)
    wait_full(keys, n)
    b_s = gl.zeros([ROWS, BLOCK_N], gl.float32, layout)
    b_s = warpgroup_mma(s_q, tile_of(keys, n).permute((1, 0)), b_s, use_acc=False, is_async=True)
    b_s = warpgroup_mma_wait(0, [b_s])
    release(keys, n)
    b_s = b_s * scores.score_scale
    if scores.cap is not None:
        b_s = scores.cap * tanh(b_s)
    o_n = slot + gl.arange(0, BLOCK_N, gl.SliceLayout(0, layout))
    o_slot = gl.convert_layout(rows.o_slot, score_rows)
    o_last = gl.convert_layout(rows.o_last, score_rows)
    if rows.b_slope is not None:
        b_slope = gl.convert_layout(rows.b_slope, score_rows)
        b_ahead = (o_n[None, :] - o_slot[:, None]).to(gl.float32)
        b_s = gl.fma(b_ahead, spread(b_slope, b_s), b_s)
    m_sees = o_n[None, :] <= o_last[:, None]
    if WINDOWED:
        m_sees = m_sees & (o_n[None, :] > o_slot[:, None] - problem.window)
    b_s = gl.where(m_sees, b_s, float("-inf"))
    if scores.p_tree is not None:  # noqa: SIM102  (decided when compiling, the inner one when running)
        if slot + BLOCK_N > item.length:
            o_t = gl.convert_layout(rows.o_t, score_rows)
            m_granted = _granted(item, o_n, o_t, o_last >= 0, scores, problem)
            b_s = gl.where(m_granted, b_s, float("-inf"))
    b_new_max = gl.maximum(b_max, gl.convert_layout(gl.max(b_s, 1), output_rows))
    b_reference = gl.where(b_new_max == float("-inf"), 0.0, b_new_max)
    b_p = gl.exp2(b_s - gl.convert_layout(b_reference, score_rows)[:, None])
    b_decay = gl.exp2(b_max - b_reference)
    b_sum = gl.fma(b_sum, b_decay, gl.convert_layout(gl.sum(b_p, 1), output_rows))
    b_acc = b_acc * b_decay[:, None]
    b_p = gl.convert_layout(b_p.to(s_q.dtype), gl.DotOperandLayout(0, output, 2), assert_trivial=True)
    wait_full(values, n)
    s_v = tile_of(values, n)
    if (slot < item.start) | (slot + BLOCK_N > item.stop):
        _clear_unseen(s_v, slot, item)
    b_acc = warpgroup_mma(b_p, s_v, b_acc, is_async=True)
    b_acc = warpgroup_mma_wait(0, [b_acc])
    release(values, n)
    return b_acc, b_new_max, b_sum


@gluon.jit
def _nothing(ROWS: gl.constexpr, HEAD_DIM: gl.constexpr):
    """(output, maximum, sum) of no slots at all."""
    output: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    return (
        gl.zeros([ROWS, HEAD_DIM], gl.float32, output),
        gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, output)),
        gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, output)),
    )


@gluon.jit
def _walk_unit(
    n, unit, s_q, keys, values, rows, item, scores, problem,
    CHUNK: gl.constexpr, UNIT: gl.constexpr, WINDOWED: gl.constexpr,
):  # fmt: skip
    """The steps of one unit, chunk by chunk: output, maximum, sum, and the steps so far."""
    ROWS: gl.constexpr = s_q.shape[0]
    HEAD_DIM: gl.constexpr = s_q.shape[1]
    BLOCK_N: gl.constexpr = keys.tiles.shape[1]
    begin = gl.maximum(unit * UNIT, item.begin)
    end = gl.minimum(unit * UNIT + UNIT, item.end)
    b_seg_acc, b_seg_max, b_seg_sum = _nothing(ROWS, HEAD_DIM)
    for chunk in range(begin // CHUNK * CHUNK, end, CHUNK):
        b_acc, b_max, b_sum = _nothing(ROWS, HEAD_DIM)
        for slot in range(gl.maximum(chunk, begin), gl.minimum(chunk + CHUNK, end), BLOCK_N):
            b_acc, b_max, b_sum = _step(
                b_acc, b_max, b_sum, n, slot, s_q, keys, values, rows, item, scores, problem, WINDOWED
            )
            n += 1
        if UNIT == CHUNK:  # the only one, left to the combine kernel to join
            b_seg_acc, b_seg_max, b_seg_sum = b_acc, b_max, b_sum
        else:
            b_seg_acc, b_seg_max, b_seg_sum = fold(b_seg_acc, b_seg_max, b_seg_sum, b_acc, b_max, b_sum)
    return b_seg_acc, b_seg_max, b_seg_sum, n


@gluon.jit
def _consume(
    s_q, keys, values, queries, scores, results, problem,
    CHUNK: gl.constexpr, UNIT: gl.constexpr, WINDOWED: gl.constexpr, WHOLE: gl.constexpr,
):  # fmt: skip
    """The computing warpgroup."""
    ROWS: gl.constexpr = s_q.shape[0]
    HEAD_DIM: gl.constexpr = s_q.shape[1]
    BLOCK_N: gl.constexpr = keys.tiles.shape[1]
    output: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    n = 0
    for i_item in range(gl.program_id(0), problem.items, gl.num_programs(0)):
        item = item_of(i_item, problem, ROWS, BLOCK_N, UNIT, WINDOWED, WHOLE)
        if item.begin < item.end:
            _load_queries(s_q, item, queries, problem)
        i_b = item.i_b.to(gl.int64)
        o_row = item.first_row + gl.arange(0, ROWS, gl.SliceLayout(1, output))
        o_d = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, output))
        o_h = item.i_kv * problem.group + o_row % problem.group
        _length, o_t, o_slot, o_last, _start, _stop = place_rows(
            problem.p_lengths, problem.p_query_lengths, item.i_b, item.first_row, o_row,
            problem.queries, problem.capacity, problem.group, problem.window, ROWS, WINDOWED,
        )  # fmt: skip
        m_row = o_last >= 0
        b_slope = None
        if scores.p_alibi is not None:
            b_slope = gl.load(scores.p_alibi + o_h, mask=m_row, other=0.0) * 1.4426950408889634  # log2 e
        rows = Rows(o_t, o_slot, o_last, b_slope)
        first_part = (i_b * problem.kv_heads + item.i_kv) * results.parts
        b_acc, b_max, b_sum = _nothing(ROWS, HEAD_DIM)
        for unit in range(item.first, item.last):
            b_acc, b_max, b_sum, n = _walk_unit(
                n, unit, s_q, keys, values, rows, item, scores, problem, CHUNK, UNIT, WINDOWED
            )
            if results.p_partial is not None:
                place = (first_part + (0 if WHOLE else unit)) * (problem.queries * problem.group)
                p_rows = results.p_partial + place * HEAD_DIM + (o_row[:, None] * HEAD_DIM + o_d[None, :])
                m_tile = m_row[:, None] & (o_d >= 0)[None, :]
                if WHOLE:  # noqa: SIM102
                    # What the segments so far yield waits in memory: the steps need the registers.
                    if unit > item.first:
                        block_barrier()
                        b_all_acc = gl.load(p_rows, mask=m_tile, other=0.0)
                        b_all_max = gl.load(results.p_max + place + o_row, mask=m_row, other=float("-inf"))
                        b_all_sum = gl.load(results.p_sum + place + o_row, mask=m_row, other=0.0)
                        b_acc, b_max, b_sum = fold(b_all_acc, b_all_max, b_all_sum, b_acc, b_max, b_sum)
                if not WHOLE or unit + 1 < item.last:
                    gl.store(results.p_max + place + o_row, b_max, mask=m_row)
                    gl.store(results.p_sum + place + o_row, b_sum, mask=m_row)
                    gl.store(p_rows, b_acc, mask=m_tile)
        if WHOLE:
            p_sinks = None if results.p_sinks is None else results.p_sinks + o_h
            b_acc, b_lse = finish(b_acc, b_max, b_sum, p_sinks, m_row)
            heads = problem.kv_heads * problem.group
            m_there = o_row < problem.queries * problem.group
            gl.store(results.p_lse + (i_b * heads + o_h) * problem.queries + o_t, b_lse, mask=m_there)
            p_rows = results.p_out + (i_b * problem.queries * heads + item.i_kv * problem.group) * HEAD_DIM
            o_rows = (o_t * heads + o_row % problem.group).to(gl.int64) * HEAD_DIM
            m_tile = m_there[:, None] & (o_d >= 0)[None, :]
            gl.store(p_rows + o_rows[:, None] + o_d[None, :], b_acc.to(s_q.dtype), mask=m_tile)


SIZES = ["queries", "capacity", "group", "kv_heads", "parts", "window", "runs", "items"]


@gluon.jit(do_not_specialize=SIZES)  # one compiled kernel serves all lengths
def hopper_cache_split_kernel(
    d_k, d_v, p_q, p_page_table, p_tree, p_sinks, p_alibi, p_lengths, p_query_lengths,
    p_out, p_lse, p_partial, p_max, p_sum,
    stride_qb, stride_qt, stride_qh, stride_qd,
    stride_table_b, stride_table_p, stride_tree_b, stride_tree_t, stride_tree_u,
    queries, capacity, group, kv_heads, parts, window, runs, items, score_scale, cap,
    HEAD_DIM: gl.constexpr, ROWS: gl.constexpr, BLOCK_N: gl.constexpr, SLOTS: gl.constexpr,
    CHUNK: gl.constexpr, UNIT: gl.constexpr, PAGE_SIZE: gl.constexpr, WINDOWED: gl.constexpr,
    WHOLE: gl.constexpr,
):  # fmt: skip
    problem = Problem(
        p_lengths, p_query_lengths, p_page_table, stride_table_b, stride_table_p,
        queries, capacity, group, kv_heads, window, runs, items,
    )  # fmt: skip
    scores = Scores(score_scale, cap, p_alibi, p_tree, stride_tree_b, stride_tree_t, stride_tree_u)
    results = Results(p_out, p_lse, p_sinks, p_partial, p_max, p_sum, parts)
    keys = allocate_ring(d_k, SLOTS, BLOCK_N, HEAD_DIM)
    values = allocate_ring(d_v, SLOTS, BLOCK_N, HEAD_DIM)
    query_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, HEAD_DIM], d_k.dtype)
    s_q = gl.allocate_shared_memory(d_k.dtype, [ROWS, HEAD_DIM], query_layout)
    fence_async_shared()
    queries_there = Queries(p_q, stride_qb, stride_qt, stride_qh, stride_qd)
    # fmt: off
    gl.warp_specialize(
        [
            (_consume, (s_q, keys, values, queries_there, scores, results, problem,
                        CHUNK, UNIT, WINDOWED, WHOLE)),
            (produce, (d_k, d_v, keys, values, problem, ROWS, UNIT, PAGE_SIZE, WINDOWED, WHOLE)),
        ],
        [1],
        [PRODUCER_REGISTERS],
    )
    # fmt: on


def split_launch(call: CacheCall, out_BTHD: Tensor, lse_BHT: Tensor, partials: Partials | None) -> Launch:
    """As `split.split_launch`, of a call to which `paths.obstacle` sees none."""
    tiles, share = call.tiles, call.deal
    head_dim = call.q_BTHD.shape[3]
    page_size = 0 if call.page_table_BP is None else call.k_cache.shape[1]
    copied = min(page_size, tiles.block_n) if page_size else tiles.block_n
    items = -(-call.rows // tiles.rows) * call.kv_heads * share.runs * call.batch
    nowhere = {**dict.fromkeys(("p_partial", "p_max", "p_sum")), "parts": 1}
    arguments = {
        **call.row_arguments(),
        **call.cache_arguments(),
        **(nowhere if partials is None else partials.arguments()),
        "p_out": out_BTHD,
        "p_lse": lse_BHT,
        "d_k": row_tiles(call.k_cache, copied, COLUMNS.value),
        "d_v": row_tiles(call.v_cache, copied, COLUMNS.value),
        "runs": share.runs,
        "items": items,
        "ROWS": tiles.rows,
        "BLOCK_N": tiles.block_n,
        "SLOTS": RING_BYTES // (tiles.block_n * head_dim * call.q_BTHD.element_size()),
        "WHOLE": share.unit is Unit.ROW,
    }
    if call.softcap is None:
        arguments["cap"] = None
    kernel = hopper_cache_split_kernel
    return Launch(
        kernel,
        (min(items, multiprocessors(call.q_BTHD.device)),),
        {name: arguments[name] for name in kernel.arg_names},  # without the plain pointers to the cache
        num_warps=4,
        max_registers=MAX_REGISTERS,
    )
