"""The phases of a layer that multiply by a weight, each as one program's share of it.

RMSNorm (Zhang & Sennrich 2019) is split between neighbours: who writes the residual stream also writes it
times the next norm's gain, and the sums of squares of its channels; who reads multiplies its results by
1 / rms. So a product starts without having seen its whole input, and its inner loop is a plain product. The
sums are whole numbers in fixed point, which programs add up in memory in any order.

Shapes: N rows, C model dim, H query heads, K kv heads, D head dim, M MLP inner width.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from lit_eff.kernels.decode_step.product import halves_of, product, share
from lit_eff.kernels.linear.epilogue import silu

FRACTIONS = tl.constexpr(2.0**40)  # in 1, of a sum of squares in fixed point
LIMIT = tl.constexpr(2.0**55)  # of such a sum: 2^8 programs' stay below 2^63


@triton.jit
def in_fixed_point(b_squares):
    """Sums of squares as two whole numbers, of ones and of fractions, which programs may add in any order."""
    b_whole = tl.where(b_squares < LIMIT, tl.floor(b_squares), LIMIT)
    b_fraction = tl.where(b_squares < LIMIT, b_squares - b_whole, 0.0)
    return b_whole.to(tl.int64), (b_fraction * FRACTIONS).to(tl.int64)


@triton.jit
def squares_of(work, norm, o_n, m_n, rows):
    """Sums of squares (ROWS,) of the channels that the norm ``norm`` of all takes, ones and fractions."""
    p_whole = work.squares + 2 * norm * rows + o_n
    b_whole = tl.load(p_whole, mask=m_n, other=0, cache_modifier=".cg")
    return b_whole, tl.load(p_whole + rows, mask=m_n, other=0, cache_modifier=".cg")


@triton.jit
def add_squares(work, norm, b_squares, o_n, m_n, rows):
    b_whole, b_fraction = in_fixed_point(b_squares)
    p_whole = work.squares + 2 * norm * rows + o_n
    tl.atomic_add(p_whole, b_whole, mask=m_n, sem="relaxed")
    tl.atomic_add(p_whole + rows, b_fraction, mask=m_n, sem="relaxed")


@triton.jit
def inverse_rms(squares, epsilon, CHANNELS: tl.constexpr):
    """NaN where the sum is beyond the range."""
    b_squares = squares[0].to(tl.float32) + squares[1].to(tl.float32) / FRACTIONS
    b_mean = tl.where(b_squares < LIMIT, b_squares, float("nan")) / CHANNELS
    return tl.rsqrt(b_mean + epsilon)


@triton.jit
def hidden_stored(work, b_gain, b_y, o_n, m_n, o_o, m_o, CHANNELS: tl.constexpr):
    """Store (BLOCK_O, ROWS) of the residual stream, as it is and times a gain; returns each row's squares."""
    b_hidden = b_y.to(work.hidden.dtype.element_ty)
    m_y = m_o[:, None] & m_n[None, :]
    o_y = o_n.to(tl.int64)[None, :] * CHANNELS + o_o[:, None]
    tl.store(work.hidden + o_y, b_hidden, mask=m_y)
    b_rounded = tl.where(m_y, b_hidden.to(tl.float32), 0.0)
    b_scaled = b_rounded * b_gain.to(tl.float32)[:, None]
    tl.store(work.scaled + o_y, b_scaled.to(work.scaled.dtype.element_ty), mask=m_y)
    return tl.sum(b_rounded * b_rounded, 0)


@triton.jit
def embed_phase(
    weights, row, work, rows, norms, capacity, i, programs,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The residual stream's start: rows of the embedding. Sums of squares start anew: the first norm's are
    found here, those of the others are zero.
    """
    first, last = share(i, CHANNELS, programs)
    for n in tl.range(0, rows, ROWS):
        o_n = n + tl.arange(0, ROWS)
        m_n = o_n < rows
        b_token = tl.load(row.token + o_n, mask=m_n, other=0)
        for o in tl.range(first, last, BLOCK_O):
            o_o = o + tl.arange(0, BLOCK_O)
            m_o = o_o < last
            p_y = weights.embedding + b_token[None, :] * CHANNELS + o_o[:, None]
            b_y = tl.load(p_y, mask=m_o[:, None] & m_n[None, :], other=0.0).to(tl.float32)
            b_gain = tl.load(weights.gains + o_o, mask=m_o, other=0.0)
            hidden_stored(work, b_gain, b_y, o_n, m_n, o_o, m_o, CHANNELS)
        for norm in tl.range(1 + i, norms, programs):
            p_whole = work.squares + 2 * norm * rows + o_n
            tl.store(p_whole, tl.zeros([ROWS], tl.int64), mask=m_n)
            tl.store(p_whole + rows, tl.zeros([ROWS], tl.int64), mask=m_n)
        if i == 0:
            b_place = tl.load(row.sequence + o_n, mask=m_n, other=0).to(tl.int64) * capacity
            b_place += tl.load(row.position + o_n, mask=m_n, other=0)
            tl.store(row.history + b_place, b_token, mask=m_n)
    o_c = tl.arange(0, BLOCK_C)
    for n in tl.range(i, rows, programs):
        token = tl.load(row.token + n)
        b_y = tl.load(weights.embedding + token * CHANNELS + o_c, mask=o_c < CHANNELS, other=0.0)
        b_y = b_y.to(tl.float32)
        whole, fraction = in_fixed_point(tl.sum(b_y * b_y, 0))
        tl.store(work.squares + n, whole)
        tl.store(work.squares + rows + n, fraction)


@triton.jit
def place_of(
    weights, row, unit, last, n, rows, HALF_DIM: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """Positions and sequences of a row tile, and cosines and sines of the pairs from ``unit`` on."""
    o_n = n + tl.arange(0, ROWS)
    m_n = o_n < rows
    b_position = tl.load(row.position + o_n, mask=m_n, other=0)
    b_sequence = tl.load(row.sequence + o_n, mask=m_n, other=0)
    o_half = unit + tl.arange(0, HALF)
    m_y = (o_half < last)[:, None] & m_n[None, :]
    o_angle = b_position[None, :] * HALF_DIM + (o_half % HALF_DIM)[:, None]
    b_cosine = tl.load(weights.cosines + o_angle, mask=m_y, other=1.0)
    b_sine = tl.load(weights.sines + o_angle, mask=m_y, other=0.0)
    return b_position, b_sequence, b_cosine, b_sine


@triton.jit
def qkv_phase(
    weights, row, cache, work, layer, rows, epsilon, i, programs, first_tile, ahead,
    CHANNELS: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_O: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Norm, queries, keys and values, rotary positions (Su et al. 2021); keys and values to the cache.

    A unit is a pair of outputs that one angle turns, D / 2 apart.
    """
    HALF: tl.constexpr = BLOCK_O // 2
    HALF_DIM: tl.constexpr = HEAD_DIM // 2
    p_weight = weights.qkv + layer * ((HEADS + 2 * KV_HEADS) * HEAD_DIM * CHANNELS)
    first, last = share(i, (HEADS + 2 * KV_HEADS) * HALF_DIM, programs)
    for unit in tl.range(first, last, HALF):
        o_both = tl.arange(0, BLOCK_O)
        o_unit = unit + o_both % HALF
        o_weight = o_unit // HALF_DIM * HEAD_DIM + o_unit % HALF_DIM + o_both // HALF * HALF_DIM
        m_weight = o_unit < last
        for n in tl.range(0, rows, ROWS):
            o_n = n + tl.arange(0, ROWS)
            m_n = o_n < rows
            squares = squares_of(work, 2 * layer, o_n, m_n, rows)
            b_position, b_sequence, b_cosine, b_sine = first_tile
            if unit + n != first:
                b_position, b_sequence, b_cosine, b_sine = place_of(
                    weights, row, unit, last, n, rows, HALF_DIM, HALF, ROWS
                )
            b_y = product(
                work.scaled, p_weight, o_n, m_n, o_weight, m_weight, ahead,
                (n + ROWS >= rows) & (unit + HALF >= last), CHANNELS, ROWS, BLOCK_O, LANES, CHUNK, STAGES,
            )  # fmt: skip
            b_y *= inverse_rms(squares, epsilon, CHANNELS)[None, :]
            b_first, b_second = halves_of(b_y, HALF, ROWS)
            m_value = (unit + tl.arange(0, HALF) >= (HEADS + KV_HEADS) * HALF_DIM)[:, None]
            b_turned = tl.fma(b_first, b_cosine, -(b_second * b_sine))
            b_turned_too = tl.fma(b_second, b_cosine, b_first * b_sine)
            b_first = tl.where(m_value, b_first, b_turned)
            b_second = tl.where(m_value, b_second, b_turned_too)
            b_both = tl.reshape(tl.permute(tl.join(b_first, b_second), (2, 0, 1)), (BLOCK_O, ROWS))

            # One store for the three: an element's place says which it is.
            i_head = o_unit // HALF_DIM
            o_d = (o_weight - i_head * HEAD_DIM)[:, None]
            p_query = work.query + o_n.to(tl.int64)[None, :] * (HEADS * HEAD_DIM)
            p_query += i_head[:, None] * HEAD_DIM + o_d
            o_slot = layer * cache.stride_layer + b_sequence.to(tl.int64) * cache.stride_sequence
            o_slot += b_position.to(tl.int64) * cache.stride_slot
            p_key = cache.k + o_slot[None, :] + (i_head - HEADS)[:, None] * cache.stride_head + o_d
            i_value = (i_head - HEADS - KV_HEADS)[:, None]
            p_value = cache.v + o_slot[None, :] + i_value * cache.stride_head + o_d
            p_place = tl.where(i_value >= 0, p_value, p_key)
            p_place = tl.where((i_head < HEADS)[:, None], p_query, p_place)
            tl.store(p_place, b_both.to(work.query.dtype.element_ty), mask=m_weight[:, None] & m_n[None, :])


@triton.jit
def residual_phase(
    p_x, p_weight, weights, norm, work, rows, i, programs, ahead,
    INPUTS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, BLOCK_O: tl.constexpr,
    LANES: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A product added to the residual stream, which the norm ``norm`` of all reads next: of the attention's
    outputs or the MLP's inner ones.
    """
    p_gain = weights.gains + norm * CHANNELS
    first, last = share(i, CHANNELS, programs)
    for n in tl.range(0, rows, ROWS):
        o_n = n + tl.arange(0, ROWS)
        m_n = o_n < rows
        b_squares = tl.zeros([ROWS], tl.float32)
        for o in tl.range(first, last, BLOCK_O):
            o_o = o + tl.arange(0, BLOCK_O)
            m_o = o_o < last
            p_hidden = work.hidden + o_n.to(tl.int64)[None, :] * CHANNELS + o_o[:, None]
            b_hidden = tl.load(p_hidden, mask=m_o[:, None] & m_n[None, :], other=0.0, cache_modifier=".cg")
            b_gain = tl.load(p_gain + o_o, mask=m_o, other=0.0)  # on its way while the product runs
            b_y = product(
                p_x, p_weight, o_n, m_n, o_o, m_o, ahead, (n + ROWS >= rows) & (o + BLOCK_O >= last),
                INPUTS, ROWS, BLOCK_O, LANES, CHUNK, STAGES,
            )  # fmt: skip
            b_y += b_hidden.to(tl.float32)
            b_squares += hidden_stored(work, b_gain, b_y, o_n, m_n, o_o, m_o, CHANNELS)
        add_squares(work, norm, b_squares, o_n, m_n, rows)


@triton.jit
def gate_up_phase(
    weights, work, layer, rows, epsilon, i, programs, ahead,
    CHANNELS: tl.constexpr, INNER: tl.constexpr, ROWS: tl.constexpr, BLOCK_O: tl.constexpr,
    LANES: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Norm, gates and what they gate (SwiGLU, Shazeer 2020). A unit is a gate and its partner."""
    HALF: tl.constexpr = BLOCK_O // 2
    p_weight = weights.gate_up + layer * (2 * INNER * CHANNELS)
    first, last = share(i, INNER, programs)
    for unit in tl.range(first, last, HALF):
        o_both = tl.arange(0, BLOCK_O)
        o_weight = unit + o_both % HALF
        m_weight = o_weight < last
        o_weight += o_both // HALF * INNER
        for n in tl.range(0, rows, ROWS):
            o_n = n + tl.arange(0, ROWS)
            m_n = o_n < rows
            squares = squares_of(work, 2 * layer + 1, o_n, m_n, rows)
            b_y = product(
                work.scaled, p_weight, o_n, m_n, o_weight, m_weight, ahead,
                (n + ROWS >= rows) & (unit + HALF >= last), CHANNELS, ROWS, BLOCK_O, LANES, CHUNK, STAGES,
            )  # fmt: skip
            b_y *= inverse_rms(squares, epsilon, CHANNELS)[None, :]
            b_gate, b_up = halves_of(b_y, HALF, ROWS)
            o_half = unit + tl.arange(0, HALF)
            p_inner = work.inner + o_n.to(tl.int64)[None, :] * INNER + o_half[:, None]
            b_inner = (silu(b_gate) * b_up).to(work.inner.dtype.element_ty)
            tl.store(p_inner, b_inner, mask=(o_half < last)[:, None] & m_n[None, :])


@triton.jit
def normed_phase(
    work, norm, rows, epsilon, i, programs,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """The last norm's result, for the output head."""
    first, last = share(i, CHANNELS, programs)
    for n in tl.range(0, rows, ROWS):
        o_n = n + tl.arange(0, ROWS)
        m_n = o_n < rows
        squares = squares_of(work, norm, o_n, m_n, rows)
        for o in tl.range(first, last, BLOCK_O):
            o_o = o + tl.arange(0, BLOCK_O)
            m_y = (o_o < last)[:, None] & m_n[None, :]
            o_y = o_n.to(tl.int64)[None, :] * CHANNELS + o_o[:, None]
            b_y = tl.load(work.scaled + o_y, mask=m_y, other=0.0, cache_modifier=".cg").to(tl.float32)
            b_y *= inverse_rms(squares, epsilon, CHANNELS)[None, :]
            tl.store(work.normed + o_y, b_y.to(work.normed.dtype.element_ty), mask=m_y)
