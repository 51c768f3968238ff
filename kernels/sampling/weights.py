"""From logits to whole-number weights and random numbers: the functions that every kernel here starts from.

The semantics, and why they are integers, are those of ``lit_eff/runtime/fixed_point.py``; the numbers must be
the same bits. So no multiplication whose product is inexact is followed by an addition, which a compiler may
fuse, and float32 quotients are the correctly rounded ones.

Shapes: N rows, V vocabulary. Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

FRACTION_BITS = tl.constexpr(20)
WEIGHT_BITS = tl.constexpr(44)
DEAD = tl.constexpr(44 << 20)
ONE = tl.constexpr(float(2**62))
MINUS_INFINITY = tl.constexpr(float("-inf"))
# What a random number is for.
TARGET = tl.constexpr(0)
DRAFT = tl.constexpr(1)
ACCEPT = tl.constexpr(2)
# Fields of a row's state, int64.
BORDER = tl.constexpr(0)  # tokens nearer than this are kept,
EQUALS = tl.constexpr(1)  # and so many of those that are as near
TOTAL = tl.constexpr(2)  # weight of all that is kept
COUNT_BIN = tl.constexpr(3)  # coarse bin of the top-k border, -1 for none,
COUNT_REST = tl.constexpr(4)  # how many of its tokens are kept,
COUNT_ABOVE = tl.constexpr(5)  # and the weight above it
MASS_BIN = tl.constexpr(6)  # coarse bin of the top-p border, -1 for none,
MASS_REST = tl.constexpr(7)  # and the weight to be reached within it
STATE = tl.constexpr(8)


@triton.jit
def row_of(rows, i_n):
    """Where row ``i_n`` starts and its sequence: target rows first, then draft rows."""
    if i_n < rows.target_rows:
        p_row = rows.target + i_n.to(tl.int64) * rows.target_stride
        i_b = i_n // rows.target_each
    else:
        i_row = i_n - rows.target_rows
        p_row = rows.draft + i_row.to(tl.int64) * rows.draft_stride
        i_b = i_row // rows.draft_each
    return p_row, i_b


@triton.jit
def logits_at(p_row, o_v, m_v):
    """Logits in float32; a NaN becomes infinite, so that the row is seen to be broken."""
    b_z = tl.load(p_row + o_v, mask=m_v, other=MINUS_INFINITY).to(tl.float32)
    return tl.where(b_z != b_z, float("inf"), b_z)


@triton.jit
def scale_of(p_peak, p_temperature, i_n, i_b, blocks, BLOCKS: tl.constexpr):
    """The row's largest logit, the factor of distances, whether it is greedy and whether it is sound."""
    o_block = tl.arange(0, BLOCKS)
    o_peak = i_n.to(tl.int64) * blocks + o_block
    largest = tl.max(tl.load(p_peak + o_peak, mask=o_block < blocks, other=MINUS_INFINITY), 0)
    temperature = tl.load(p_temperature + i_b)
    greedy = temperature == 0.0
    factor = tl.div_rn(1.4426950408889634, tl.where(greedy, 1.0, temperature))
    factor = tl.minimum(factor, 3.4028234663852886e38)
    sound = (largest < float("inf")) & (largest > MINUS_INFINITY)
    return largest, factor, greedy, sound


@triton.jit
def distances(b_z, largest, factor, greedy):
    """How far logits lie below the largest, int32, in steps of 2^-20 of a factor of two; DEAD at most."""
    b_below = tl.minimum((largest - b_z) * factor, 44.0)
    b_x = (b_below * 1048576.0 + 0.5).to(tl.int32)  # that product is exact
    return tl.where(greedy, tl.where(b_z == largest, 0, DEAD), b_x)


@triton.jit
def weights_of(b_x):
    """2^(44 - distance), rounded down, int64: the polynomial of ``fixed_point.EXP2_COEFFICIENTS``."""
    b_f = ((b_x & 1048575) << 12).to(tl.uint32, bitcast=True)
    b_y = 319744 - tl.umulhi(b_f, b_f * 0 + 24275)
    b_y = 2856024 - tl.umulhi(b_f, b_y)
    b_y = 20652244 - tl.umulhi(b_f, b_y)
    b_y = 119193747 - tl.umulhi(b_f, b_y)
    b_y = 515882469 - tl.umulhi(b_f, b_y)
    b_y = 1488522236 - tl.umulhi(b_f, b_y)
    b_w = (2147483648 - tl.umulhi(b_f, b_y).to(tl.int64)) << (WEIGHT_BITS - 31)
    return tl.where(b_x < DEAD, b_w >> (b_x >> FRACTION_BITS).to(tl.int64), 0)


@triton.jit
def floor_of(p_min_p, i_b):
    """The least weight that min-p keeps."""
    floor = tl.full((), 0, tl.int64)
    if p_min_p is not None:
        floor = (tl.load(p_min_p + i_b) * 17592186044416.0).to(tl.int64)  # 2^44: exact
    return floor


@triton.jit
def border_of(p_state, i_n, greedy):
    """Up to which distance a row's tokens are kept, and how many of those at that distance."""
    border = tl.load(p_state + i_n.to(tl.int64) * STATE + BORDER).to(tl.int32)
    equals = tl.load(p_state + i_n.to(tl.int64) * STATE + EQUALS).to(tl.int32)
    return tl.where(greedy, 0, border), tl.where(greedy, 1, equals)


@triton.jit
def kept(b_x, b_w, border, equals, floor, equal_before):
    """The weights that truncation leaves in a block, which ``equal_before`` equals of the border precede."""
    b_equal = (b_x == border).to(tl.int32)
    b_rank = equal_before + tl.cumsum(b_equal, 0) - b_equal
    b_keep = (b_x < border) | ((b_equal > 0) & (b_rank < equals))
    return tl.where(b_keep & (b_w >= floor), b_w, 0)


@triton.jit
def probabilities(b_w, total):
    """Weights of a total as multiples of 2^-62."""
    return (b_w.to(tl.float64) * (ONE / tl.maximum(total, 1).to(tl.float64))).to(tl.int64)


@triton.jit
def random_word(seed, position, PURPOSE: tl.constexpr, slot):
    """A uniform uint64; the layout is that of ``lit_eff/runtime/random_numbers.py``."""
    low = (position & 0xFFFFFFFF).to(tl.uint32)
    high = (position >> 32).to(tl.uint32)
    first, second, _, _ = tl.philox(seed, low, high, low * 0 + PURPOSE, low * 0 + slot)
    return (second.to(tl.uint64) << 32) | first.to(tl.uint64)


@triton.jit
def share(word, total):
    """``word * total / 2^64``, rounded down."""
    return tl.umulhi(word, total.to(tl.uint64)).to(tl.int64)


@triton.jit
def located(b_w, position):
    """The first place whose cumulative weight exceeds ``position``, and the weight before it."""
    o = tl.arange(0, b_w.shape[0])
    i_found = tl.sum((tl.cumsum(b_w, 0) <= position).to(tl.int32), 0)
    return i_found, tl.sum(tl.where(o < i_found, b_w, 0), 0)


@triton.jit
def arrives_last(p_done, programs):
    """Whether all other programs of a row have come by: what they wrote before is then seen.

    The barrier puts every thread's writes before the counting one, whose release and acquire hand them on.
    """
    tl.debug_barrier()
    return tl.atomic_add(p_done, 1, sem="acq_rel") == programs - 1
