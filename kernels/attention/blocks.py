"""Triton pieces that the forward and the backward kernels share: tile loads, scores, masks, block ranges.

Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile). ``o_m`` counts queries and ``o_n`` keys;
where a tile needs both, the caller gives them the shapes that broadcast to it: (M, 1) and (1, N) where it
holds queries by keys, (1, M) and (N, 1) where it holds keys by queries.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from lit_eff.kernels.attention.arguments import Head, Row, Rows
from lit_eff.kernels.elementary import tanh


@triton.jit
def row_of(sizes, i_b):
    """What the programs of batch row ``i_b`` need to know of it."""
    queries, keys = sizes.queries, sizes.keys
    first_query, first_key = 0, 0
    if sizes.cu_seqlens_q is not None:
        first_query = tl.load(sizes.cu_seqlens_q + i_b).to(tl.int64)
        first_key = tl.load(sizes.cu_seqlens_k + i_b).to(tl.int64)
        queries = (tl.load(sizes.cu_seqlens_q + i_b + 1) - first_query).to(tl.int32)
        keys = (tl.load(sizes.cu_seqlens_k + i_b + 1) - first_key).to(tl.int32)
    offset = keys - queries
    if sizes.starts is not None:
        offset = tl.load(sizes.starts + i_b).to(tl.int32)
    return Row(i_b, queries, keys, offset, first_query, first_key)


@triton.jit
def head_of(row, rule, i_h):
    """Query head ``i_h`` of a row."""
    slope, seed = 0.0, 0
    if rule.slopes is not None:
        slope = tl.load(rule.slopes + i_h) * 1.4426950408889634  # log2 e
    if rule.seed is not None:
        seed = tl.load(rule.seed)
    return Head(i_h, row.i_b, row.queries, row.keys, row.offset, slope, seed)


@triton.jit
def rows_of(rows, i_b, i_h, first_row):
    """One head of a tensor, from row ``first_row`` on."""
    p_head = rows.pointer + (i_b * rows.stride_b + i_h * rows.stride_h + first_row * rows.stride_row)
    return Rows(p_head, rows.stride_b, rows.stride_row, rows.stride_h, rows.stride_d)


@triton.jit
def load_rows(
    rows, first, count, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, EDGE: tl.constexpr
):  # fmt: skip
    """The (BLOCK, BLOCK_D) tile of one head from row ``first``.

    With EDGE, rows past the end are read as 0 and not requested; lanes past the head dim never are. The
    tile's place is a 64-bit scalar, offsets within it are 32-bit: tensors of 64-bit pointers cost registers
    in every loop. `call.addressable` sees to it that 32 bits suffice.
    """
    o_row = tl.arange(0, BLOCK)
    o_d = tl.arange(0, BLOCK_D)
    p_tile = (
        rows.pointer
        + tl.cast(first, tl.int64) * rows.stride_row
        + (o_row[:, None] * rows.stride_row + o_d[None, :] * rows.stride_d)
    )
    if EDGE:
        b_tile = tl.load(p_tile, mask=(first + o_row < count)[:, None] & (o_d < HEAD_DIM)[None, :], other=0.0)
    elif HEAD_DIM < BLOCK_D:
        b_tile = tl.load(p_tile, mask=(o_d < HEAD_DIM)[None, :], other=0.0)
    else:
        b_tile = tl.load(p_tile)
    return b_tile


@triton.jit
def store_rows(
    rows, b_tile, first, count, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Write the rows and lanes that exist, in the pointer's dtype."""
    o_row = tl.arange(0, BLOCK)
    o_d = tl.arange(0, BLOCK_D)
    p_tile = (
        rows.pointer
        + tl.cast(first, tl.int64) * rows.stride_row
        + (o_row[:, None] * rows.stride_row + o_d[None, :] * rows.stride_d)
    )
    m_tile = (first + o_row < count)[:, None] & (o_d < HEAD_DIM)[None, :]
    tl.store(p_tile, b_tile.to(rows.pointer.dtype.element_ty), mask=m_tile)


@triton.jit
def statistic_of(statistic, i_b, i_h, first_query):
    """Where one head's part of a (B, H, T) statistic starts."""
    return statistic.pointer + (i_b * statistic.stride_b + i_h * statistic.stride_h + first_query)


@triton.jit
def load_lse(p_lse, o_m, queries):
    """Log-sum-exp in base 2; +inf, hence weights of zero, for rows past the end.

    A row that saw no key has -inf, hence weights of +inf: its blocks are all masked, which makes them zero.
    """
    return tl.load(p_lse + o_m, mask=o_m < queries, other=float("inf")) * 1.4426950408889634  # log2 e


@triton.jit
def load_ids(p_ids, stride_b, stride_row, i_b, o_row, count):
    """Document ids of some rows, 32 bits of them; past the end -1, where masks hide the rows anyhow."""
    p_rows = p_ids + i_b * stride_b + o_row.to(tl.int64) * stride_row
    return tl.load(p_rows, mask=o_row < count, other=-1).to(tl.int32)


@triton.jit
def scores(b_left, b_right, rule):
    """Scores of two row tiles in base 2: log2(e) is folded into the scale, so exp2 needs no multiply."""
    b_s = tl.dot(b_left, tl.trans(b_right), input_precision="ieee") * rule.score_scale
    if rule.cap is not None:
        b_s = rule.cap * tanh(b_s)
    return b_s


@triton.jit
def score_gradient(b_p, b_dp, b_delta, b_s, rule):
    """dS before the scale: P * (dP - delta), through the softcap's derivative 1 - tanh^2."""
    b_ds = b_p * (b_dp - b_delta)
    if rule.cap is not None:
        b_tanh = b_s * rule.inverse_cap
        b_ds = b_ds * (1.0 - b_tanh * b_tanh)
    return b_ds


@triton.jit
def with_bias(b_s, o_m, o_n, head, rule):
    """Scores with ALiBi's -slope * |slot - key| (Press et al. 2022), exact in float32 up to 2^24 slots."""
    if rule.slopes is not None:
        b_s -= head.slope * tl.abs((o_m + head.offset).to(tl.float32) - o_n.to(tl.float32))
    return b_s


@triton.jit
def sees(o_m, o_n, b_document, b_key_document, head, rule, CAUSAL: tl.constexpr):
    """Which keys each query sees; ids have the shapes of ``o_m`` and ``o_n``, or are None."""
    o_slot = o_m + head.offset
    m_sees = o_n < head.keys
    if CAUSAL:
        m_sees = m_sees & (o_n <= o_slot)
    if rule.window is not None:
        m_sees = m_sees & (o_slot - o_n < rule.window)
        if not CAUSAL:
            m_sees = m_sees & (o_n - o_slot < rule.window)
    if b_document is not None:
        m_sees = m_sees & (b_document == b_key_document)
    return m_sees


@triton.jit
def keeps(o_m, o_n, head, rule, ROUNDS: tl.constexpr):
    """Which weights dropout keeps: `dropout.kept_weights` for one tile."""
    c_m = (o_m >> 4 << 3) | (o_m & 7)
    c_n = (o_n >> 4 << 3) | (o_n & 7)
    i_h, i_b = head.i_h.to(tl.int32), head.i_b.to(tl.int32)
    b_w0, b_w1, b_w2, b_w3 = tl.philox(head.seed, c_m, c_n, i_h, i_b, ROUNDS)
    m_bit = (o_n & 8) != 0
    b_word = tl.where((o_m & 8) != 0, tl.where(m_bit, b_w3, b_w2), tl.where(m_bit, b_w1, b_w0))
    return (b_word >> 1).to(tl.int32) >= rule.drop_below


@triton.jit
def key_range(
    first, head, rule, documents, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr
):  # fmt: skip
    """Key blocks that the queries from ``first`` touch: (start, inner start, inner stop, stop).

    Blocks in [inner start, inner stop) are seen whole by every query of the tile and need no mask. Every
    start is a multiple of BLOCK_N. `traffic_model.key_range` is the same in Python; the two must agree.
    """
    first_slot = first + head.offset
    last_slot = tl.minimum(first + BLOCK_M, head.queries) - 1 + head.offset
    start = 0
    stop = head.keys
    inner_start = 0
    inner_stop = head.keys // BLOCK_N * BLOCK_N
    if CAUSAL:
        stop = tl.minimum(stop, tl.maximum(last_slot + 1, 0))
        inner_stop = tl.minimum(inner_stop, tl.maximum(first_slot + 1, 0) // BLOCK_N * BLOCK_N)
    if rule.window is not None:
        start = tl.maximum(first_slot - rule.window + 1, 0) // BLOCK_N * BLOCK_N
        inner_start = tl.cdiv(tl.maximum(last_slot - rule.window + 1, 0), BLOCK_N) * BLOCK_N
        if not CAUSAL:
            stop = tl.minimum(stop, tl.maximum(last_slot + rule.window, 0))
            inner_stop = tl.minimum(inner_stop, tl.maximum(first_slot + rule.window, 0) // BLOCK_N * BLOCK_N)
    if documents is not None:
        start, inner_start, inner_stop, stop = _within_documents(
            documents, first // BLOCK_M, head.i_b, start, inner_start, inner_stop, stop, BLOCK_N
        )
    # Packed sequences are launched at the longest one's size.
    stop = tl.where(first < head.queries, stop, 0)
    inner_stop = tl.maximum(tl.where(first < head.queries, inner_stop, 0), inner_start)
    return start, inner_start, inner_stop, stop


@triton.jit
def query_range(
    first, head, rule, documents, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr
):  # fmt: skip
    """Query blocks that see the keys from ``first``: (start, inner start, inner stop, stop), as `key_range`.

    Only what query_range calls inner is free of score masks; its last block may still reach past the queries,
    whose weights are zero there (see `load_lse`). Keys past the end need no mask: what they yield stays in
    their own rows of dK and dV, never stored.
    """
    last = tl.minimum(first + BLOCK_N, head.keys) - 1
    start = 0
    stop = head.queries
    inner_start = 0
    inner_stop = tl.cdiv(head.queries, BLOCK_M) * BLOCK_M
    if CAUSAL:
        start = tl.maximum(first - head.offset, 0) // BLOCK_M * BLOCK_M
        inner_start = tl.cdiv(tl.maximum(last - head.offset, 0), BLOCK_M) * BLOCK_M
    if rule.window is not None:
        behind = rule.window - head.offset
        stop = tl.minimum(stop, tl.maximum(last + behind, 0))
        inner_stop = tl.minimum(inner_stop, tl.maximum(first + behind, 0) // BLOCK_M * BLOCK_M)
        if not CAUSAL:
            ahead = rule.window - 1 + head.offset
            start = tl.maximum(first - ahead, 0) // BLOCK_M * BLOCK_M
            inner_start = tl.cdiv(tl.maximum(last - ahead, 0), BLOCK_M) * BLOCK_M
    if documents is not None:
        start, inner_start, inner_stop, stop = _within_documents(
            documents, first // BLOCK_N, head.i_b, start, inner_start, inner_stop, stop, BLOCK_M
        )
    stop = tl.where(first < head.keys, stop, 0)
    inner_stop = tl.maximum(tl.where(first < head.keys, inner_stop, 0), inner_start)
    return start, inner_start, inner_stop, stop


@triton.jit
def _within_documents(
    documents, i_tile, i_b, start, inner_start, inner_stop, stop, BLOCK: tl.constexpr
):  # fmt: skip
    """The ranges, cut to where the tile's documents lie; inner only if one document lies there, whole."""
    p_range = documents.ranges + (i_b * tl.num_programs(0) + i_tile) * 3
    seen_start = tl.load(p_range)
    seen_stop = tl.load(p_range + 1)
    is_whole = tl.load(p_range + 2) != 0
    start = tl.maximum(start, seen_start // BLOCK * BLOCK)
    stop = tl.minimum(stop, seen_stop)
    inner_start = tl.where(is_whole, tl.maximum(inner_start, tl.cdiv(seen_start, BLOCK) * BLOCK), start)
    inner_stop = tl.where(is_whole, tl.minimum(inner_stop, seen_stop // BLOCK * BLOCK), start)
    return start, inner_start, inner_stop, stop
