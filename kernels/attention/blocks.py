"""Triton pieces that the forward and the backward kernels share: tile loads, scores, masks, block ranges.

Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(
    p_base, first, rows, stride_row, stride_d,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """The (BLOCK, BLOCK_D) tile from row ``first``.

    With EDGE, rows past the end are read as 0 and not requested; lanes past the head dim never are. The
    tile's place is a 64-bit scalar, offsets within it are 32-bit: tensors of 64-bit pointers cost registers
    in every loop. `call.addressable` sees to it that 32 bits suffice.
    """
    o_row = tl.arange(0, BLOCK)
    o_d = tl.arange(0, BLOCK_D)
    p_tile = (
        p_base
        + tl.cast(first, tl.int64) * stride_row
        + (o_row[:, None] * stride_row + o_d[None, :] * stride_d)
    )
    if EDGE:
        b_tile = tl.load(p_tile, mask=(first + o_row < rows)[:, None] & (o_d < HEAD_DIM)[None, :], other=0.0)
    elif HEAD_DIM < BLOCK_D:
        b_tile = tl.load(p_tile, mask=(o_d < HEAD_DIM)[None, :], other=0.0)
    else:
        b_tile = tl.load(p_tile)
    return b_tile


@triton.jit
def store_rows(
    p_base, b_tile, first, rows, stride_row, stride_d,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the rows and lanes that exist, in the pointer's dtype."""
    o_row = tl.arange(0, BLOCK)
    o_d = tl.arange(0, BLOCK_D)
    p_tile = (
        p_base
        + tl.cast(first, tl.int64) * stride_row
        + (o_row[:, None] * stride_row + o_d[None, :] * stride_d)
    )
    m_tile = (first + o_row < rows)[:, None] & (o_d < HEAD_DIM)[None, :]
    tl.store(p_tile, b_tile.to(p_base.dtype.element_ty), mask=m_tile)


@triton.jit
def tanh(b_x):
    """Accurate to float32 rounding: through the sigmoid, whose cancellation near 0 a series avoids.

    (The interpreter has no libdevice, where Triton's own tanh is.)
    """
    b_square = b_x * b_x
    b_series = b_x * (1.0 + b_square * (-1 / 3 + b_square * (2 / 15 + b_square * (-17 / 315))))
    return tl.where(b_square < 0.02, b_series, 2.0 * tl.sigmoid(2.0 * b_x) - 1.0)


@triton.jit
def scores(b_left, b_right, score_scale, cap, SOFTCAP: tl.constexpr):
    """Scores of two row tiles in base 2: log2(e) is folded into the scale, so exp2 needs no multiply.

    With a softcap, ``score_scale`` is scale / softcap and ``cap`` is softcap * log2(e).
    """
    b_s = tl.dot(b_left, tl.trans(b_right), input_precision="ieee") * score_scale
    if SOFTCAP:
        b_s = cap * tanh(b_s)
    return b_s


@triton.jit
def sees(
    o_slot, o_n, keys, b_document, b_key_document, window,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """Which keys each query sees; the queries' slots and ids broadcast against the keys'."""
    m_sees = o_n < keys
    if CAUSAL:
        m_sees = m_sees & (o_n <= o_slot)
    if WINDOWED:
        m_sees = m_sees & (o_slot - o_n < window)
    if DOCUMENTS:
        m_sees = m_sees & (b_document == b_key_document)
    return m_sees


@triton.jit
def key_range(
    first, offset, queries, keys, window,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """Key blocks that the queries from ``first`` touch: (start, inner start, inner stop, stop).

    Blocks in [inner start, inner stop) are seen whole by every query of the tile and need no mask. Every
    start is a multiple of BLOCK_N. `traffic_model.key_range` is the same in Python; the two must agree.
    """
    first_slot = first + offset
    last_slot = tl.minimum(first + BLOCK_M, queries) - 1 + offset
    start = 0
    stop = keys
    inner_start = 0
    inner_stop = keys // BLOCK_N * BLOCK_N
    if CAUSAL:
        stop = tl.minimum(stop, tl.maximum(last_slot + 1, 0))
        inner_stop = tl.minimum(inner_stop, tl.maximum(first_slot + 1, 0) // BLOCK_N * BLOCK_N)
    if WINDOWED:
        start = tl.maximum(first_slot - window + 1, 0) // BLOCK_N * BLOCK_N
        inner_start = tl.cdiv(tl.maximum(last_slot - window + 1, 0), BLOCK_N) * BLOCK_N
    if DOCUMENTS:
        inner_start = start
        inner_stop = start
    inner_stop = tl.maximum(inner_stop, inner_start)
    return start, inner_start, inner_stop, stop


@triton.jit
def query_range(
    first, offset, queries, keys, window,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """Query blocks that see the keys from ``first``: (start, inner start, inner stop, stop), as `key_range`.

    Only what query_range calls inner is free of score masks; its last block may still reach past the queries,
    whose weights are zero there (see `load_lse`). Keys past the end need no mask: what they yield stays in
    their own rows of dK and dV, never stored.
    """
    last = tl.minimum(first + BLOCK_N, keys) - 1
    start = 0
    stop = queries
    inner_start = 0
    inner_stop = tl.cdiv(queries, BLOCK_M) * BLOCK_M
    if CAUSAL:
        start = tl.maximum(first - offset, 0) // BLOCK_M * BLOCK_M
        inner_start = tl.cdiv(tl.maximum(last - offset, 0), BLOCK_M) * BLOCK_M
    if WINDOWED:
        stop = tl.minimum(stop, tl.maximum(last + window - offset, 0))
        inner_stop = tl.minimum(inner_stop, tl.maximum(first + window - offset, 0) // BLOCK_M * BLOCK_M)
    if DOCUMENTS:
        inner_start = start
        inner_stop = start
    inner_stop = tl.maximum(inner_stop, inner_start)
    return start, inner_start, inner_stop, stop


@triton.jit
def load_lse(p_lse, o_m, queries):
    """Log-sum-exp in base 2; +inf, hence weights of zero, for rows past the end.

    A row that saw no key has -inf, hence weights of +inf: its blocks are all masked, which makes them zero.
    """
    return tl.load(p_lse + o_m, mask=o_m < queries, other=float("inf")) * 1.4426950408889634  # log2 e


@triton.jit
def score_gradient(b_p, b_dp, b_delta, b_s, cap, SOFTCAP: tl.constexpr):
    """dS before the scale: P * (dP - delta), through the softcap's derivative 1 - tanh^2."""
    b_ds = b_p * (b_dp - b_delta)
    if SOFTCAP:
        b_tanh = b_s / cap
        b_ds = b_ds * (1.0 - b_tanh * b_tanh)
    return b_ds
