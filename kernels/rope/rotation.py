"""The rotation of pairs of channels, as device functions: whoever calls them gets the same bits.

A head's D channels are taken as D / 2 pairs: pair i < R is (i, i + R), which turns by the angle of position
times frequency i (Su et al. 2021, in Hugging Face's order of channels); the channels from 2 R on, which do
not turn, are paired in their own halves. So one tile of pairs holds a head, whatever part of it turns.

Shapes: D head dim, M positions of the tables, R rotary pairs (half the rotary dim).
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from lit_eff.kernels.linear.norm import added_up


@triton.jit
def pair_channels(o_pair, HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr):
    """First and second channel of each pair; ``PAIRS`` is R, 0 without rotation."""
    o_first = tl.where(o_pair < PAIRS, o_pair, o_pair + PAIRS)
    o_second = tl.where(o_pair < PAIRS, o_pair + PAIRS, o_pair + HEAD_DIM // 2)
    return o_first, o_second


@triton.jit
def load_angles(angles, o_pair, b_position, m_position, PAIRS: tl.constexpr):
    """Cosine and sine of each pair at each position, which broadcast; 1 and 0 where nothing turns.

    Positions that ``m_position`` masks off may lie outside the tables.
    """
    o_angle = b_position.to(tl.int64) * PAIRS + o_pair
    m_angle = (o_pair < PAIRS) & m_position
    b_cos = tl.load(angles.cos + o_angle, mask=m_angle, other=1.0)
    b_sin = tl.load(angles.sin + o_angle, mask=m_angle, other=0.0)
    return b_cos, b_sin


@triton.jit
def turned(b_first, b_second, b_cos, b_sin, m_turns):
    """(first cos - second sin, second cos + first sin) in float32 where ``m_turns``, else as they were.

    The multiply-adds are spelt out: left to the compiler, two kernels could round differently.
    """
    b_cos = tl.broadcast_to(b_cos, b_first.shape)
    b_sin = tl.broadcast_to(b_sin, b_first.shape)
    b_new_first = tl.fma(b_first, b_cos, -(b_second * b_sin))
    b_new_second = tl.fma(b_second, b_cos, b_first * b_sin)
    # Not by an angle of 0: an infinity beside would make a NaN.
    return tl.where(m_turns, b_new_first, b_first), tl.where(m_turns, b_new_second, b_second)


@triton.jit
def reciprocal_rms(b_first, b_second, epsilon, HEAD_DIM: tl.constexpr, LEVELS: tl.constexpr):
    """1 / sqrt(mean square + epsilon) of each row of pairs, (rows, 1); 2**LEVELS pairs, of which those past
    the head are zero. Added up in one spelt-out order, as in `linear.norm`.
    """
    b_square = added_up(tl.fma(b_second, b_second, b_first * b_first), LEVELS)
    return tl.rsqrt(b_square / HEAD_DIM + epsilon)
