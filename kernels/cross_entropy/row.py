"""What a program does with a row of logits: statistics in one reading, the gradient in a second.

Logits are natural; sums of exponentials are taken in base 2, and log-sum-exps named so are too.

Shapes: V vocabulary. Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from lit_eff.kernels.elementary import tanh

LOG2E = tl.constexpr(1.4426950408889634)
# Below every finite logit, and finite itself in base 2: -inf minus -inf would be NaN.
LOWEST = tl.constexpr(-1.0e38)
FAR = tl.constexpr(2147483647)


class Logits(NamedTuple):
    """Rows of products: logits are those plus the bias, through the softcap. All but sizes may be None."""

    pointer: Any
    bias: Any
    columns: Any
    stride: Any  # from row to row, a multiple of the vector width, which the columns need not be
    softcap: Any


class State(NamedTuple):
    """Statistics of a row, or of a shard of it; ``best`` is a column of the whole vocabulary."""

    top: Any
    best: Any
    target: Any  # the target's logit, 0 where another shard holds it
    total: Any  # of exp(x - top)
    sum: Any  # of x
    hot: Any  # of exp((x - top) / T)
    cross: Any  # of teacher's probability * (teacher's logit - x)


@triton.jit
def capped(b_x, softcap):
    if softcap is not None:
        b_x = softcap * tanh(b_x / softcap)
    return b_x


@triton.jit
def fetch(p_row, logits, o_v, TAIL: tl.constexpr):
    """Products at ``o_v``, as they stand. TAIL: some lie past the stride."""
    if TAIL:
        b_product = tl.load(p_row + o_v, mask=o_v < logits.stride, other=float("-inf"))
    else:
        b_product = tl.load(p_row + o_v)
    return b_product


@triton.jit
def logits_of(logits, b_product, o_v, TAIL: tl.constexpr):
    """The logits of what was fetched. TAIL: -inf past the last column, which the stride need not be."""
    b_x = b_product.to(tl.float32)
    if logits.bias is not None:
        b_x += tl.load(logits.bias + o_v, mask=o_v < logits.columns, other=0.0).to(tl.float32)
    b_x = capped(b_x, logits.softcap)
    if TAIL:
        b_x = tl.where(o_v < logits.columns, b_x, float("-inf"))
    return b_x


@triton.jit
def load_logit(p_row, logits, i_v):
    """The logit of one column; 0 where the row has no such column."""
    m_v = (i_v >= 0) & (i_v < logits.columns)
    x = tl.load(p_row + i_v, mask=m_v, other=0.0).to(tl.float32)
    if logits.bias is not None:
        x += tl.load(logits.bias + i_v, mask=m_v, other=0.0).to(tl.float32)
    return capped(x, logits.softcap)


class Lanes(NamedTuple):
    """A `State` of each lane, but for the target; a lane's columns are a vector's."""

    top: Any
    block: Any  # what the program looked at when the lane found its maximum: its first column
    total: Any
    sum: Any  # of each column of the vector apart
    hot: Any
    cross: Any  # likewise


@triton.jit
def fold(
    lanes, logits, p_teacher, teacher, teacher_lse, b_product, first, o_tile, coolness,
    SMOOTH: tl.constexpr, HOT: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Take in a vector of columns a lane: what an element costs is a maximum, a multiply-add, an exponential
    and an addition."""
    o_v = first + o_tile
    b_x = logits_of(logits, b_product, o_v, TAIL)
    b_peak = tl.max(b_x, axis=1)
    b_top = tl.maximum(lanes.top, b_peak)
    b_decay = (lanes.top - b_top) * LOG2E
    b_high = b_top * LOG2E
    b_total = lanes.total * tl.exp2(b_decay) + tl.sum(tl.exp2(b_x * LOG2E - b_high[:, None]), axis=1)
    b_block = tl.where(b_peak > lanes.top, first, lanes.block)
    b_sum, b_hot, b_cross = lanes.sum, lanes.hot, lanes.cross
    if HOT:
        b_new = tl.exp2(b_x * (LOG2E * coolness) - (b_high * coolness)[:, None])
        b_hot = b_hot * tl.exp2(b_decay * coolness) + tl.sum(b_new, axis=1)
    if SMOOTH:
        b_sum += tl.where(o_v < logits.columns, b_x, 0.0) if TAIL else b_x
    if p_teacher is not None:
        b_t = logits_of(teacher, fetch(p_teacher, teacher, o_v, TAIL), o_v, TAIL)
        b_apart = tl.where(o_v < logits.columns, b_t - b_x, 0.0) if TAIL else b_t - b_x
        b_cross += tl.exp2(b_t * (LOG2E * coolness) - teacher_lse) * b_apart
    return Lanes(b_top, b_block, b_total, b_sum, b_hot, b_cross)


@triton.jit
def row_statistics(
    p_row, logits, p_teacher, teacher, teacher_lse, target, first_column, coolness,
    SMOOTH: tl.constexpr, HOT: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """The row's `State`; ``coolness`` is 1 / T, ``target`` a column of this shard or none.

    Lanes take vectors of columns, AHEAD of them under way together, and keep statistics of their own.
    """
    # Read before the barriers of the reductions below: past them a thread may write the gradient there.
    target_x = load_logit(p_row, logits, target)
    o_lane = tl.arange(0, BLOCK // VECTOR) * VECTOR
    o_vector = tl.arange(0, VECTOR)
    o_tile = o_lane[:, None] + o_vector[None, :]
    b_zero = tl.zeros([BLOCK // VECTOR], tl.float32)
    b_zeros = tl.zeros([BLOCK // VECTOR, VECTOR], tl.float32)
    lanes = Lanes(b_zero + LOWEST, b_zero.to(tl.int32), b_zero, b_zeros, b_zero, b_zeros)
    whole = logits.columns // (AHEAD * BLOCK) * (AHEAD * BLOCK)
    for start in range(0, whole, AHEAD * BLOCK):
        fetched = ()
        for i in tl.static_range(AHEAD):
            fetched += (fetch(p_row, logits, start + i * BLOCK + o_tile, False),)  # type: ignore[assignment]
        for i in tl.static_range(AHEAD):
            lanes = fold(
                lanes, logits, p_teacher, teacher, teacher_lse, fetched[i], start + i * BLOCK, o_tile,
                coolness, SMOOTH, HOT, False,
            )  # fmt: skip
    for first in range(whole, logits.stride, BLOCK):
        b_product = fetch(p_row, logits, first + o_tile, True)
        lanes = fold(
            lanes, logits, p_teacher, teacher, teacher_lse, b_product, first, o_tile, coolness,
            SMOOTH, HOT, True,
        )  # fmt: skip
    top = tl.max(lanes.top)
    # The lowest column that holds the maximum, as PyTorch's argmax on a CPU; any if all is NaN.
    o_v = tl.min(tl.where(lanes.top == top, lanes.block + o_lane, FAR)) + o_vector
    column = tl.min(tl.where(logits_of(logits, fetch(p_row, logits, o_v, True), o_v, True) == top, o_v, FAR))
    best = first_column + tl.minimum(column, logits.columns - 1)
    b_decay = (lanes.top - top) * LOG2E
    total = tl.sum(lanes.total * tl.exp2(b_decay))
    hot = tl.sum(lanes.hot * tl.exp2(b_decay * coolness))
    b_sum, b_cross = tl.sum(lanes.sum, axis=1), tl.sum(lanes.cross, axis=1)
    return State(top, best, target_x, total, tl.sum(b_sum), hot, tl.sum(b_cross))


class Slope(NamedTuple):
    """Factors of d loss / d logit in a row, and the log-sum-exps (in base 2) that its softmaxes take."""

    lse: Any
    hot_lse: Any
    teacher_lse: Any
    coolness: Any
    per_probability: Any
    per_hot: Any  # per difference from the teacher
    uniform: Any  # taken off everywhere
    at_target: Any  # taken off at the target


@triton.jit
def softmax_gradient(b_x, slope):
    """Of cross-entropy and z-loss, but for what only the target gets."""
    return tl.exp2(b_x * LOG2E - slope.lse) * slope.per_probability - slope.uniform


@triton.jit
def teacher_gradient(b_x, b_t, slope):
    """Of the divergence from the teacher's logits ``b_t``."""
    b_own = tl.exp2(b_x * (LOG2E * slope.coolness) - slope.hot_lse)
    b_teacher = tl.exp2(b_t * (LOG2E * slope.coolness) - slope.teacher_lse)
    return slope.per_hot * (b_own - b_teacher)


@triton.jit
def through_softcap(b_g, b_x, softcap):
    """The softcap's derivative is 1 - tanh^2."""
    if softcap is not None:
        b_tanh = b_x / softcap
        b_g *= 1.0 - b_tanh * b_tanh
    return b_g


@triton.jit
def store_gradient(logits, p_gradient, p_teacher, teacher, slope, b_product, o_v, TAIL: tl.constexpr):
    b_x = logits_of(logits, b_product, o_v, TAIL)
    b_g = softmax_gradient(b_x, slope)
    if p_teacher is not None:
        b_t = logits_of(teacher, fetch(p_teacher, teacher, o_v, TAIL), o_v, TAIL)
        b_g += teacher_gradient(b_x, b_t, slope)
    b_g = through_softcap(b_g, b_x, logits.softcap).to(p_gradient.dtype.element_ty)
    if TAIL:  # the products read the padding's columns too
        b_g = tl.where(o_v < logits.columns, b_g, 0.0)
        tl.store(p_gradient + o_v, b_g, mask=o_v < logits.stride)
    else:
        tl.store(p_gradient + o_v, b_g)


@triton.jit
def row_gradient(
    p_row, logits, p_gradient, p_teacher, teacher, slope, target, target_x,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Write d loss / d logit of the row, which may lie where the logits lie; the target's comes last."""
    o_tile = tl.arange(0, BLOCK // VECTOR)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    whole = logits.columns // (AHEAD * BLOCK) * (AHEAD * BLOCK)
    for start in range(0, whole, AHEAD * BLOCK):
        fetched = ()
        for i in tl.static_range(AHEAD):
            fetched += (fetch(p_row, logits, start + i * BLOCK + o_tile, False),)  # type: ignore[assignment]
        for i in tl.static_range(AHEAD):
            o_v = start + i * BLOCK + o_tile
            store_gradient(logits, p_gradient, p_teacher, teacher, slope, fetched[i], o_v, False)
    for first in range(whole, logits.stride, BLOCK):
        o_v = first + o_tile
        b_product = fetch(p_row, logits, o_v, True)
        store_gradient(logits, p_gradient, p_teacher, teacher, slope, b_product, o_v, True)
    at = softmax_gradient(target_x, slope) - slope.at_target
    if p_teacher is not None:
        at += teacher_gradient(target_x, load_logit(p_teacher, teacher, target), slope)
    at = through_softcap(at, target_x, logits.softcap)
    tl.debug_barrier()  # another thread has written the target's column
    m_here = (target >= 0) & (target < logits.columns)
    tl.store(p_gradient + target, at.to(p_gradient.dtype.element_ty), mask=m_here)


@triton.jit
def zero_row(p_row, stride, BLOCK: tl.constexpr):
    o_lane = tl.arange(0, BLOCK)
    b_zero = tl.zeros([BLOCK], p_row.dtype.element_ty)
    for first in range(0, stride, BLOCK):
        tl.store(p_row + first + o_lane, b_zero, mask=first + o_lane < stride)
