"""The kernel that walks the cache: every head of a group and every query in one tile, K and V read once.

A program owns one row tile of one kv head and a run of chunks. It writes a partial result for each chunk, or,
when it owns the row's whole cache, joins them itself.

Shapes: B batch, T query length, S cache slots, P pages a row, H query heads, K kv heads, D head dim.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lit_eff.kernels.attention.blocks import tanh
from lit_eff.kernels.attention.with_cache.call import CacheCall, Partials
from lit_eff.kernels.attention.with_cache.combine import finish, fold, row_tile
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
    """The (BLOCK_N, BLOCK_D) keys or values from slot ``n``; slots and lanes masked off are 0, not requested."""
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
def cache_split_kernel(
    p_q, p_k, p_v, p_page_table, p_tree, p_sinks, p_alibi, p_lengths, p_query_lengths,
    p_out, p_lse, p_partial, p_max, p_sum,
    stride_qb, stride_qt, stride_qh, stride_qd,
    stride_kb, stride_ks, stride_kh, stride_kd,
    stride_vb, stride_vs, stride_vh, stride_vd,
    stride_table_b, stride_table_p, stride_tree_b, stride_tree_t, stride_tree_u,
    queries, capacity, group, kv_heads, chunks, window, score_scale, cap,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr, PAGE_SIZE: tl.constexpr, WINDOWED: tl.constexpr, SOFTCAP: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(queries * group, ROWS)
    i_tile = (
        tl.program_id(0) % tiles
    )  # neighbours read the same keys, or the next head's, which lie beside them
    i_kv = tl.program_id(0) // tiles
    i_b = tl.program_id(2).to(tl.int64)
    length, o_row, o_t, o_slot, o_last, start, stop = row_tile(
        p_lengths, p_query_lengths, i_b, i_tile, queries, capacity, group, window, ROWS, WINDOWED
    )
    first, last = start // CHUNK, tl.cdiv(stop, CHUNK)
    if not WHOLE:  # this program's share of the chunks that this row has
        share = tl.cdiv(tl.maximum(last - first, 0), tl.num_programs(1))
        first += tl.program_id(1) * share
        last = tl.minimum(first + share, last)
        if first >= last:
            return

    o_h = i_kv * group + o_row % group
    m_row = o_last >= 0
    o_d = tl.arange(0, BLOCK_D)
    p_q_rows = p_q + i_b * stride_qb + o_t.to(tl.int64) * stride_qt + o_h * stride_qh
    b_q = tl.load(
        p_q_rows[:, None] + o_d[None, :] * stride_qd,
        mask=m_row[:, None] & (o_d < HEAD_DIM)[None, :],
        other=0.0,
    )
    if p_alibi is not None:
        b_slope = tl.load(p_alibi + o_h, mask=m_row, other=0.0) * 1.4426950408889634  # log2 e
    if PAGE_SIZE > 0:
        p_page_table += i_b * stride_table_b
    else:
        p_k += i_b * stride_kb
        p_v += i_b * stride_vb
    p_k += i_kv.to(tl.int64) * stride_kh
    p_v += i_kv.to(tl.int64) * stride_vh

    if WHOLE:
        b_all_acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
        b_all_max = tl.full([ROWS], float("-inf"), tl.float32)
        b_all_sum = tl.zeros([ROWS], tl.float32)
    for c in range(first, last):
        b_acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
        b_max = tl.full([ROWS], float("-inf"), tl.float32)
        b_sum = tl.zeros([ROWS], tl.float32)
        # Steps that no row of the tile sees are skipped: they would change nothing.
        n_start = tl.maximum(c * CHUNK, start // BLOCK_N * BLOCK_N)
        n_stop = tl.minimum(c * CHUNK + CHUNK, stop)
        b_page = load_pages(p_page_table, n_start, stop, stride_table_p, PAGE_SIZE, BLOCK_N)
        for n in tl.range(n_start, n_stop, BLOCK_N):
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
            if p_alibi is not None:
                b_ahead = (o_n[None, :] - o_slot[:, None]).to(tl.float32)  # key minus query: at most 0
                b_s = tl.fma(b_ahead, tl.broadcast_to(b_slope[:, None], b_s.shape), b_s)
            # Every step is masked, also those that need not be: a second loop without masks could be
            # compiled to other roundings, and which loop a step falls in depends on the row's neighbours.
            m_sees = o_n[None, :] <= o_last[:, None]
            if WINDOWED:
                m_sees = m_sees & (o_n[None, :] > o_slot[:, None] - window)
            if p_tree is not None:
                if n + BLOCK_N > length:
                    o_u = o_n - length
                    p_grants = (
                        p_tree
                        + i_b * stride_tree_b
                        + o_t[:, None].to(tl.int64) * stride_tree_t
                        + o_u[None, :] * stride_tree_u
                    )
                    b_granted = tl.load(p_grants, mask=m_sees & (o_u >= 0)[None, :], other=1)
                    m_sees = m_sees & (b_granted != 0)
            b_s = tl.where(m_sees, b_s, float("-inf"))
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
        if WHOLE:
            b_all_acc, b_all_max, b_all_sum = fold(b_all_acc, b_all_max, b_all_sum, b_acc, b_max, b_sum)
        else:
            o_partial = ((i_b * kv_heads + i_kv) * chunks + c) * (queries * group) + o_row
            tl.store(p_max + o_partial, b_max, mask=m_row)
            tl.store(p_sum + o_partial, b_sum, mask=m_row)
            p_rows = p_partial + o_partial * HEAD_DIM
            tl.store(p_rows[:, None] + o_d[None, :], b_acc, mask=m_row[:, None] & (o_d < HEAD_DIM)[None, :])
    if WHOLE:
        finish(
            b_all_acc, b_all_max, b_all_sum, o_row, o_t, o_last, i_b, i_kv, p_out, p_lse, p_sinks,
            queries, group, kv_heads, HEAD_DIM, BLOCK_D,
        )  # fmt: skip


def split_launch(
    call: CacheCall, out_BTHD: Tensor, lse_BHT: Tensor, partials: Partials | None, runs: int
) -> Launch:
    """The launch that fills ``partials`` with ``runs`` programs a row tile, or the outputs without partials."""
    tiles = call.tiles
    arguments = {
        **call.row_arguments(),
        **call.cache_arguments(),
        "p_out": out_BTHD,
        "p_lse": lse_BHT,
        **(dict.fromkeys(("p_partial", "p_max", "p_sum")) if partials is None else partials.arguments()),
        "chunks": 1 if partials is None else partials.chunks,
        "ROWS": tiles.rows,
        "BLOCK_N": tiles.block_n,
        "WHOLE": partials is None,
    }
    grid = (triton.cdiv(call.rows, tiles.rows) * call.kv_heads, runs, call.batch)
    return Launch(cache_split_kernel, grid, arguments, tiles.num_warps, tiles.num_stages)
