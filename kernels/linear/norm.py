"""Normalising rows as they are read: statistics in float32, added up in one order whatever the launch.

Shapes: N rows, C channels. Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

WIDTH = tl.constexpr(256)  # channels read at a time
KEPT = tl.constexpr(32)  # sums a row until the end
LEVELS = tl.constexpr(3)  # halvings from WIDTH to KEPT


@triton.jit
def halves(b_rows):
    """Even and odd columns."""
    return tl.split(tl.reshape(b_rows, (b_rows.shape[0], b_rows.shape[1] // 2, 2)))


@triton.jit
def added_up(b_rows, LEVELS: tl.constexpr):
    """Sums of neighbouring columns, ``LEVELS`` times over.

    Spelt out, for the order that `tl.sum` takes depends on how a tile lies in the registers of its warps.
    """
    for _ in tl.static_range(LEVELS):
        b_even, b_odd = halves(b_rows)
        b_rows = b_even + b_odd
    return b_rows


@triton.jit
def row_sums(b_kept):
    """Sums of KEPT columns, one after the other: a product with ones, in float32, knows no other order."""
    b_sums = tl.dot(b_kept, tl.full([KEPT, 16], 1.0, tl.float32), input_precision="ieee")
    return tl.max(b_sums, 1)  # of sixteen equal ones


@triton.jit
def statistics(x, epsilon, o_n, m_n, channels, ROWS: tl.constexpr, CENTERED: tl.constexpr):
    """Mean (0 unless CENTERED) and 1 / sqrt(variance or mean square + epsilon) of rows ``o_n``."""
    o_c = tl.arange(0, WIDTH)
    p_x = x.pointer + (o_n.to(tl.int64) * x.stride_row)[:, None] + (o_c * x.stride_column)[None, :]
    b_mean = tl.zeros([ROWS], tl.float32)
    if CENTERED:
        b_sum = tl.zeros([ROWS, KEPT], tl.float32)
        for c in tl.range(0, channels, WIDTH):
            m_x = m_n[:, None] & (c + o_c < channels)[None, :]
            b_x = tl.load(p_x + c * x.stride_column, mask=m_x, other=0.0).to(tl.float32)
            b_sum += added_up(b_x, LEVELS)
        b_mean = row_sums(b_sum) / channels
    b_sum = tl.zeros([ROWS, KEPT], tl.float32)
    for c in tl.range(0, channels, WIDTH):
        m_x = m_n[:, None] & (c + o_c < channels)[None, :]
        b_x = tl.load(p_x + c * x.stride_column, mask=m_x, other=0.0).to(tl.float32)
        if CENTERED:
            b_x = tl.where(m_x, b_x - b_mean[:, None], 0.0)
        b_even, b_odd = halves(b_x)
        # The multiply-adds are spelt out: left to the compiler, two kernels could round differently.
        b_sum += added_up(tl.fma(b_odd, b_odd, b_even * b_even), LEVELS - 1)
    b_square = row_sums(b_sum) / channels
    return b_mean, tl.rsqrt(b_square + epsilon)


@triton.jit
def normalised(b_x, norm, b_mean, b_rstd, o_c, m_c):
    """(x - mean) * rstd * gain + shift in float32, rounded to the dtype of x; all broadcast to its tile."""
    b_y = (b_x.to(tl.float32) - b_mean) * b_rstd
    if norm.gain is not None:
        b_y *= tl.load(norm.gain + o_c, mask=m_c, other=0.0).to(tl.float32)
    if norm.shift is not None:
        b_y += tl.load(norm.shift + o_c, mask=m_c, other=0.0).to(tl.float32)
    return b_y.to(b_x.dtype)
