"""The portable kernel that walks the cache: a group's heads and all queries in one tile, K and V read once.

A program owns one row tile of one kv head and a run of chunks or segments, for each of which it writes a
partial result; or the whole cache of its rows, and then it writes theirs.

Shapes: B batch, T query length, S cache slots, P pages a row, H query heads, K kv heads, D head dim.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lit_eff.kernels.attention.with_cache.call import CacheCall, Partials
from lit_eff.kernels.attention.with_cache.combine import finish, fold, row_tile
from lit_eff.kernels.attention.with_cache.tiles import Unit
from lit_eff.kernels.elementary import tanh
from lit_eff.profiling.launch import Launch


@triton.jit
def load_pages(p_table, n, stop, stride_p, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Page of each slot from ``n``, or the one page of them all where blocks never cross pages."""
    if PAGE_SIZE == 0:
        b_page = 0
    elif PAGE_SIZE % BLOCK_N == 0:
        b_page = tl.load(p_table + n // PAGE_SIZE * stride_p, mask=n < stop, other=0).to(tl.int32)
    else:
        o_n = n + tl.arange(0, BLOCK_N)
        b_page = tl.load(p_table + o_n // PAGE_SIZE * stride_p, mask=o_n < stop, other=0).to(tl.int32)
    return b_page


@triton.jit
def load_slots(
    p_cache, b_page, n, m_slot, stride_b, stride_s, stride_d,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr,
):  # fmt: skip
    """The (BLOCK_N, BLOCK_D) keys or values from slot ``n``; what is masked off is 0 and not requested."""
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D)
    if PAGE_SIZE % BLOCK_N == 0:  # one stretch of memory: 64-bit place, 32-bit offsets
        place = n
        if PAGE_SIZE > 0:
            p_cache += tl.cast(b_page, tl.int64) * stride_b
            place = n % PAGE_SIZE
        p_tile = (
            p_cache
            + tl.cast(place, tl.int64) * stride_s
            + (o_n[:, None] * stride_s + o_d[None, :] * stride_d)
        )
    else:
        o_slot = b_page.to(tl.int64) * stride_b + (n + o_n) % PAGE_SIZE * stride_s
        p_tile = p_cache + o_slot[:, None] + o_d[None, :] * stride_d
    m_tile = m_slot[:, None]
    if HEAD_DIM < BLOCK_D:
        m_tile = m_tile & (o_d < HEAD_DIM)[None, :]
    return tl.load(p_tile, mask=m_tile, other=0.0)


@triton.jit
def tree_bits(p_tree, o_t, m_row, queries, stride_t, stride_u):
    """Each row's tree mask as one number, bit u for query u: a tile of flags takes the room of keys."""
    o_u = tl.arange(0, 64)
    p_flags = p_tree + o_t[:, None].to(tl.int64) * stride_t + o_u[None, :] * stride_u
    b_flags = tl.load(p_flags, mask=m_row[:, None] & (o_u < queries)[None, :], other=0).to(tl.int64)
    return tl.sum(b_flags << o_u[None, :], 1)


@triton.jit
def nothing(ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """(output, maximum, sum) of no slots at all."""
    return (
        tl.zeros([ROWS, BLOCK_D], tl.float32),
        tl.full([ROWS], float("-inf"), tl.float32),
        tl.zeros([ROWS], tl.float32),
    )


@triton.jit
def walk(
    b_acc, b_max, b_sum, b_seg_acc, b_seg_max, b_seg_sum, b_q, o_slot, o_last, b_slope, b_tree,
    p_k, p_v, p_page_table, stride_kb, stride_ks, stride_kd, stride_vb, stride_vs, stride_vd,
    stride_table_p, n_start, n_stop, start, stop, length, window, score_scale, cap,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr, UNIT: tl.constexpr, PAGE_SIZE: tl.constexpr, WINDOWED: tl.constexpr,
    SOFTCAP: tl.constexpr,
):  # fmt: skip
    """The steps from ``n_start`` within a unit: slots into the chunk, finished chunks into the segment."""
    b_page = load_pages(p_page_table, n_start, stop, stride_table_p, PAGE_SIZE, BLOCK_N)
    for n in tl.range(n_start, n_stop, BLOCK_N):
        if UNIT != CHUNK:  # noqa: SIM102  (decided when compiling, the inner one when running)
            if n % CHUNK == 0:
                b_seg_acc, b_seg_max, b_seg_sum = fold(b_seg_acc, b_seg_max, b_seg_sum, b_acc, b_max, b_sum)
                b_acc, b_max, b_sum = nothing(ROWS, BLOCK_D)
        o_n = n + tl.arange(0, BLOCK_N)
        # A slot that no query sees may hold anything: its value must be 0, for 0 * NaN is NaN.
        m_slot = o_n < stop
        if WINDOWED:
            m_slot = m_slot & (o_n >= start)
        b_k = load_slots(
            p_k, b_page, n, m_slot, stride_kb, stride_ks, stride_kd, HEAD_DIM, BLOCK_D, BLOCK_N, PAGE_SIZE
        )
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * score_scale
        if SOFTCAP:
            b_s = cap * tanh(b_s)
        if b_slope is not None:
            b_ahead = (o_n[None, :] - o_slot[:, None]).to(tl.float32)  # key minus query: at most 0
            b_s = tl.fma(b_ahead, tl.broadcast_to(b_slope[:, None], b_s.shape), b_s)
        # Every step is masked, also those that need not be: a second loop without masks could be
        # compiled to other roundings, and which loop a step falls in depends on the row's neighbours.
        m_sees = o_n[None, :] <= o_last[:, None]
        if WINDOWED:
            m_sees = m_sees & (o_n[None, :] > o_slot[:, None] - window)
        b_s = tl.where(m_sees, b_s, float("-inf"))
        if b_tree is not None:
            o_u = o_n - length
            o_bit = tl.minimum(tl.maximum(o_u, 0), 63)
            b_granted = (b_tree[:, None] >> o_bit[None, :]) & 1
            b_s = tl.where((b_granted != 0) | (o_u < 0)[None, :], b_s, float("-inf"))
        b_new_max = tl.maximum(b_max, tl.max(b_s, 1))
        b_reference = tl.where(b_new_max == float("-inf"), 0.0, b_new_max)
        b_p = tl.exp2(b_s - b_reference[:, None])
        b_decay = tl.exp2(b_max - b_reference)
        b_sum = tl.fma(b_sum, b_decay, tl.sum(b_p, 1))
        b_acc = b_acc * b_decay[:, None]
        b_v = load_slots(
            p_v, b_page, n, m_slot, stride_vb, stride_vs, stride_vd, HEAD_DIM, BLOCK_D, BLOCK_N, PAGE_SIZE
        )
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc, input_precision="ieee")
        b_max = b_new_max
        # The next step's pages are asked for one step before the keys that need them.
        b_page = load_pages(p_page_table, n + BLOCK_N, stop, stride_table_p, PAGE_SIZE, BLOCK_N)
    return b_acc, b_max, b_sum, b_seg_acc, b_seg_max, b_seg_sum


@triton.jit
def cache_split_kernel(
    p_q, p_k, p_v, p_page_table, p_tree, p_sinks, p_alibi, p_lengths, p_query_lengths,
    p_out, p_lse, p_partial, p_max, p_sum,
    stride_qb, stride_qt, stride_qh, stride_qd,
    stride_kb, stride_ks, stride_kh, stride_kd,
    stride_vb, stride_vs, stride_vh, stride_vd,
    stride_table_b, stride_table_p, stride_tree_b, stride_tree_t, stride_tree_u,
    queries, capacity, group, kv_heads, parts, window, score_scale, cap,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr, SEGMENT: tl.constexpr, UNIT: tl.constexpr, PAGE_SIZE: tl.constexpr,
    WINDOWED: tl.constexpr, SOFTCAP: tl.constexpr, WHOLE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(queries * group, ROWS)
    # Neighbouring programs read the same keys, or the next head's, which lie beside them.
    i_tile = tl.program_id(0) % tiles
    i_kv = tl.program_id(0) // tiles
    i_b = tl.program_id(2).to(tl.int64)
    o_row = i_tile * ROWS + tl.arange(0, ROWS)
    o_h = i_kv * group + o_row % group
    o_d = tl.arange(0, BLOCK_D)
    # Asked for before the length that decides whether there is work: one wait for both.
    p_q_rows = p_q + i_b * stride_qb + (o_row // group).to(tl.int64) * stride_qt + o_h * stride_qh
    m_q = (o_row < queries * group)[:, None] & (o_d < HEAD_DIM)[None, :]
    b_q = tl.load(p_q_rows[:, None] + o_d[None, :] * stride_qd, mask=m_q, other=0.0)
    length, o_t, o_slot, o_last, start, stop = row_tile(
        p_lengths, p_query_lengths, i_b, i_tile * ROWS, o_row,
        queries, capacity, group, window, ROWS, WINDOWED,
    )  # fmt: skip
    first, last = start // UNIT, tl.cdiv(stop, UNIT)
    if not WHOLE:  # this program's share of the units that this row has
        share = tl.cdiv(tl.maximum(last - first, 0), tl.num_programs(1))
        first += tl.program_id(1) * share
        last = tl.minimum(first + share, last)
        if first >= last:
            return

    m_row = o_last >= 0
    b_slope = None
    if p_alibi is not None:
        b_slope = tl.load(p_alibi + o_h, mask=m_row, other=0.0) * 1.4426950408889634  # log2 e
    if PAGE_SIZE > 0:
        p_page_table += i_b * stride_table_b
    else:
        p_k += i_b * stride_kb
        p_v += i_b * stride_vb
    p_k += i_kv.to(tl.int64) * stride_kh
    p_v += i_kv.to(tl.int64) * stride_vh

    first_part = (i_b * kv_heads + i_kv) * parts
    b_acc, b_max, b_sum = nothing(ROWS, BLOCK_D)
    for unit in range(first, last):
        b_acc, b_max, b_sum = nothing(ROWS, BLOCK_D)
        b_seg_acc, b_seg_max, b_seg_sum = nothing(ROWS, BLOCK_D)
        # Steps that no row of the tile sees are skipped: they would change nothing.
        n_start = tl.maximum(unit * UNIT, start // BLOCK_N * BLOCK_N)
        n_stop = tl.minimum(unit * UNIT + UNIT, stop)
        n_tree = n_stop
        if p_tree is not None:  # the steps that reach the call's own slots come last, in a loop of their own
            n_tree = tl.minimum(tl.maximum(length // BLOCK_N * BLOCK_N, n_start), n_stop)
        b_acc, b_max, b_sum, b_seg_acc, b_seg_max, b_seg_sum = walk(
            b_acc, b_max, b_sum, b_seg_acc, b_seg_max, b_seg_sum,
            b_q, o_slot, o_last, b_slope, None,
            p_k, p_v, p_page_table, stride_kb, stride_ks, stride_kd, stride_vb, stride_vs, stride_vd,
            stride_table_p, n_start, n_tree, start, stop, length, window, score_scale, cap,
            HEAD_DIM, BLOCK_D, ROWS, BLOCK_N, CHUNK, UNIT, PAGE_SIZE, WINDOWED, SOFTCAP,
        )  # fmt: skip
        if p_tree is not None:  # noqa: SIM102
            if n_tree < n_stop:
                b_tree = tree_bits(
                    p_tree + i_b * stride_tree_b, o_t, m_row, queries, stride_tree_t, stride_tree_u
                )
                b_acc, b_max, b_sum, b_seg_acc, b_seg_max, b_seg_sum = walk(
                    b_acc, b_max, b_sum, b_seg_acc, b_seg_max, b_seg_sum,
                    b_q, o_slot, o_last, b_slope, b_tree,
                    p_k, p_v, p_page_table, stride_kb, stride_ks, stride_kd, stride_vb, stride_vs, stride_vd,
                    stride_table_p, n_tree, n_stop, start, stop, length, window, score_scale, cap,
                    HEAD_DIM, BLOCK_D, ROWS, BLOCK_N, CHUNK, UNIT, PAGE_SIZE, WINDOWED, SOFTCAP,
                )  # fmt: skip
        if UNIT != CHUNK:
            b_acc, b_max, b_sum = fold(b_seg_acc, b_seg_max, b_seg_sum, b_acc, b_max, b_sum)
        if p_partial is not None:
            place = (first_part + (0 if WHOLE else unit)) * (queries * group)
            p_rows = p_partial + place * HEAD_DIM + (o_row[:, None] * HEAD_DIM + o_d[None, :])
            m_tile = m_row[:, None] & (o_d < HEAD_DIM)[None, :]
            if WHOLE:  # noqa: SIM102
                # What the segments so far yield waits in memory: the loop over the steps needs the registers.
                if unit > first:
                    tl.debug_barrier()
                    b_all_acc = tl.load(p_rows, mask=m_tile, other=0.0)
                    b_all_max = tl.load(p_max + place + o_row, mask=m_row, other=float("-inf"))
                    b_all_sum = tl.load(p_sum + place + o_row, mask=m_row, other=0.0)
                    b_acc, b_max, b_sum = fold(b_all_acc, b_all_max, b_all_sum, b_acc, b_max, b_sum)
            if PDL and unit + 1 == last:
                # Not before: combine programs would pile up where a multiprocessor has room, and wait there.
                tl.extra.cuda.gdc_launch_dependents()
            if not WHOLE or unit + 1 < last:
                tl.store(p_max + place + o_row, b_max, mask=m_row)
                tl.store(p_sum + place + o_row, b_sum, mask=m_row)
                tl.store(p_rows, b_acc, mask=m_tile)
    if WHOLE:
        b_acc, b_lse = finish(b_acc, b_max, b_sum, None if p_sinks is None else p_sinks + o_h, m_row)
        heads = kv_heads * group
        m_row = o_row < queries * group
        tl.store(p_lse + (i_b * heads + o_h) * queries + o_t, b_lse, mask=m_row)
        p_rows = p_out + (i_b * queries * heads + i_kv * group) * HEAD_DIM
        o_rows = (o_t * heads + o_row % group).to(tl.int64) * HEAD_DIM
        m_tile = m_row[:, None] & (o_d < HEAD_DIM)[None, :]
        tl.store(p_rows + o_rows[:, None] + o_d[None, :], b_acc.to(p_out.dtype.element_ty), mask=m_tile)


def split_launch(call: CacheCall, out_BTHD: Tensor, lse_BHT: Tensor, partials: Partials | None) -> Launch:
    """The launch that fills ``partials``, or the outputs where a program owns whole rows."""
    tiles, share = call.tiles, call.deal
    nowhere = {**dict.fromkeys(("p_partial", "p_max", "p_sum")), "parts": 1}
    arguments = {
        **call.row_arguments(),
        **call.cache_arguments(),
        "p_out": out_BTHD,
        "p_lse": lse_BHT,
        **(nowhere if partials is None else partials.arguments()),
        "ROWS": tiles.rows,
        "BLOCK_N": tiles.block_n,
        "WHOLE": share.unit is Unit.ROW,
        "PDL": call.overlaps,
    }
    grid = (triton.cdiv(call.rows, tiles.rows) * call.kv_heads, share.runs, call.batch)
    # At head dim 128 the assembler would spill to have three programs a multiprocessor rather than two.
    registers = 255 if tiles.num_warps == 4 and arguments["BLOCK_D"] == 128 else None
    return Launch(cache_split_kernel, grid, arguments, tiles.num_warps, tiles.num_stages, registers)
