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
def row_of(logits, i_row):
    """Row ``i_row`` of a chunk."""
    pointer = logits.pointer + tl.cast(i_row, tl.int64) * logits.stride
    return Logits(pointer, logits.bias, logits.columns, logits.stride, logits.softcap)


@triton.jit
def capped(b_x, softcap):
    if softcap is not None:
        b_x = softcap * tanh(b_x / softcap)
    return b_x


@triton.jit
def load_logits(row, o_v, EDGE: tl.constexpr):
    """The row's logits at ``o_v``, -inf past the last column; EDGE: the stride is not the last column."""
    m_v = o_v < row.columns
    b_x = tl.load(row.pointer + o_v, mask=o_v < row.stride, other=float("-inf")).to(tl.float32)
    if row.bias is not None:
        b_x += tl.load(row.bias + o_v, mask=m_v, other=0.0).to(tl.float32)
    b_x = capped(b_x, row.softcap)
    if EDGE or row.softcap is not None:
        b_x = tl.where(m_v, b_x, float("-inf"))
    return b_x


@triton.jit
def load_logit(row, i_v):
    """The logit of one column; 0 where the row has no such column."""
    m_v = (i_v >= 0) & (i_v < row.columns)
    x = tl.load(row.pointer + i_v, mask=m_v, other=0.0).to(tl.float32)
    if row.bias is not None:
        x += tl.load(row.bias + i_v, mask=m_v, other=0.0).to(tl.float32)
    return capped(x, row.softcap)


@triton.jit
def row_statistics(
    row, teacher, teacher_lse, target, first_column, coolness, SMOOTH: tl.constexpr, HOT: tl.constexpr,
    EDGE: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The row's `State`; ``coolness`` is 1 / T, ``target`` a column of this shard or none.

    A lane takes a vector of columns at a time and keeps a maximum and sums of its own: what an element
    costs is a maximum, a multiply-add, an exponential and an addition.
    """
    o_lane = tl.arange(0, BLOCK // VECTOR) * VECTOR
    o_vector = tl.arange(0, VECTOR)
    b_top = tl.full([BLOCK // VECTOR], LOWEST, tl.float32)
    b_block = tl.zeros([BLOCK // VECTOR], tl.int32)
    b_total = tl.zeros([BLOCK // VECTOR], tl.float32)
    b_sum = tl.zeros([BLOCK // VECTOR], tl.float32)
    b_hot = tl.zeros([BLOCK // VECTOR], tl.float32)
    b_cross = tl.zeros([BLOCK // VECTOR], tl.float32)
    for first in tl.range(0, row.stride, BLOCK, num_stages=STAGES):
        o_v = first + o_lane[:, None] + o_vector[None, :]
        b_x = load_logits(row, o_v, EDGE)
        b_peak = tl.max(b_x, axis=1)
        b_new = tl.maximum(b_top, b_peak)
        b_decay = (b_top - b_new) * LOG2E
        b_high = b_new * LOG2E
        b_total = b_total * tl.exp2(b_decay) + tl.sum(tl.exp2(b_x * LOG2E - b_high[:, None]), axis=1)
        if HOT:
            b_new_hot = tl.exp2(b_x * (LOG2E * coolness) - (b_high * coolness)[:, None])
            b_hot = b_hot * tl.exp2(b_decay * coolness) + tl.sum(b_new_hot, axis=1)
        b_block = tl.where(b_peak > b_top, first, b_block)
        b_top = b_new
        if SMOOTH:
            b_sum += tl.sum(tl.where(o_v < row.columns, b_x, 0.0), axis=1)
        if teacher.pointer is not None:
            b_t = load_logits(teacher, o_v, EDGE)
            b_p = tl.exp2(b_t * (LOG2E * coolness) - teacher_lse)
            b_cross += tl.sum(tl.where(o_v < row.columns, b_p * (b_t - b_x), 0.0), axis=1)
    top = tl.max(b_top)
    # The lowest column that holds the maximum, as PyTorch's argmax on a CPU; any if all is NaN.
    o_v = tl.min(tl.where(b_top == top, b_block + o_lane, FAR)) + o_vector
    column = tl.min(tl.where(load_logits(row, o_v, EDGE) == top, o_v, FAR))
    best = first_column + tl.minimum(column, row.columns - 1)
    b_decay = (b_top - top) * LOG2E
    total = tl.sum(b_total * tl.exp2(b_decay))
    hot = tl.sum(b_hot * tl.exp2(b_decay * coolness))
    return State(top, best, load_logit(row, target), total, tl.sum(b_sum), hot, tl.sum(b_cross))


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
    """The softcap's derivative is 1 - tanh^2; nothing comes from past the columns, where x is -inf."""
    if softcap is not None:
        b_tanh = b_x / softcap
        b_g = tl.where(b_x == float("-inf"), 0.0, b_g * (1.0 - b_tanh * b_tanh))
    return b_g


@triton.jit
def row_gradient(
    row, p_gradient, teacher, slope, target, target_x,
    EDGE: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write d loss / d logit of the row, which may lie where the logits lie; the target's comes last."""
    o_lane = tl.arange(0, BLOCK // VECTOR) * VECTOR
    o_vector = tl.arange(0, VECTOR)
    for first in tl.range(0, row.stride, BLOCK, num_stages=STAGES):
        o_v = first + o_lane[:, None] + o_vector[None, :]
        b_x = load_logits(row, o_v, EDGE)
        b_g = softmax_gradient(b_x, slope)
        if teacher.pointer is not None:
            b_g += teacher_gradient(b_x, load_logits(teacher, o_v, EDGE), slope)
        b_g = through_softcap(b_g, b_x, row.softcap)
        tl.store(p_gradient + o_v, b_g.to(p_gradient.dtype.element_ty), mask=o_v < row.stride)
    at = softmax_gradient(target_x, slope) - slope.at_target
    if teacher.pointer is not None:
        at += teacher_gradient(target_x, load_logit(teacher, target), slope)
    at = through_softcap(at, target_x, row.softcap)
    tl.debug_barrier()  # another thread has written the target's column
    m_here = (target >= 0) & (target < row.columns)
    tl.store(p_gradient + target, at.to(p_gradient.dtype.element_ty), mask=m_here)


@triton.jit
def zero_row(p_row, stride, BLOCK: tl.constexpr):
    o_lane = tl.arange(0, BLOCK)
    b_zero = tl.zeros([BLOCK], p_row.dtype.element_ty)
    for first in range(0, stride, BLOCK):
        tl.store(p_row + first + o_lane, b_zero, mask=first + o_lane < stride)
