"""One program a row of logits: the softmax's statistics, the losses, and the gradient in the logits' place.

A row is read twice; rows under way are few enough for the second reading to come from a cache.

Shapes: N tokens (n those of a chunk), V vocabulary, E exits.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from lit_eff.kernels.cross_entropy.call import ROW_SUMS, STATES, Chunk, LossCall
from lit_eff.kernels.elementary import tanh
from lit_eff.profiling.launch import Launch

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Below every finite logit, and finite itself in base 2: -inf minus -inf would be NaN.
LOWEST = tl.constexpr(-1.0e38)
FAR = tl.constexpr(2147483647)


@triton.jit
def load_logits(
    p_row, p_bias, o_v, columns, stride_row, softcap, SOFTCAP: tl.constexpr, EDGE: tl.constexpr
):  # fmt: skip
    """Logits at ``o_v``, -inf past the last column.

    The row is read up to its stride, a multiple of the vector width, which the columns need not be (EDGE).
    """
    b_x = tl.load(p_row + o_v, mask=o_v < stride_row, other=float("-inf")).to(tl.float32)
    if p_bias is not None:
        b_x += tl.load(p_bias + o_v, mask=o_v < columns, other=0.0).to(tl.float32)
    if SOFTCAP:
        b_x = softcap * tanh(b_x / softcap)
    if SOFTCAP or EDGE:
        b_x = tl.where(o_v < columns, b_x, float("-inf"))
    return b_x


@triton.jit
def row_statistics(
    p_row, p_bias, p_teacher, p_teacher_bias, teacher_lse, columns, stride_row, softcap, coolness,
    SOFTCAP: tl.constexpr, SMOOTH: tl.constexpr, HOT: tl.constexpr, EDGE: tl.constexpr,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Maximum, its first column, and sums: of exp(x - maximum), x, exp((x - maximum) / T), teacher * (t - x).

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
    for first in tl.range(0, stride_row, BLOCK, num_stages=STAGES):
        o_v = first + o_lane[:, None] + o_vector[None, :]
        b_x = load_logits(p_row, p_bias, o_v, columns, stride_row, softcap, SOFTCAP, EDGE)
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
            b_sum += tl.sum(tl.where(o_v < columns, b_x, 0.0), axis=1)
        if p_teacher is not None:
            b_t = load_logits(p_teacher, p_teacher_bias, o_v, columns, stride_row, softcap, SOFTCAP, EDGE)
            b_p = tl.exp2(b_t * (LOG2E * coolness) - teacher_lse)
            b_cross += tl.sum(tl.where(o_v < columns, b_p * (b_t - b_x), 0.0), axis=1)
    top = tl.max(b_top)
    # The lowest column that holds the maximum, as PyTorch's argmax on a CPU; any if all is NaN.
    o_v = tl.min(tl.where(b_top == top, b_block + o_lane, FAR)) + o_vector
    b_x = load_logits(p_row, p_bias, o_v, columns, stride_row, softcap, SOFTCAP, EDGE)
    column = tl.minimum(tl.min(tl.where(b_x == top, o_v, FAR)), columns - 1)
    b_decay = (b_top - top) * LOG2E
    total = tl.sum(b_total * tl.exp2(b_decay))
    hot = tl.sum(b_hot * tl.exp2(b_decay * coolness))
    return top, column, total, tl.sum(b_sum), hot, tl.sum(b_cross)


@triton.jit
def softmax_gradient(b_x, lse, per_probability, uniform):
    """Of cross-entropy and z-loss, but for what only the target gets; ``lse`` in base 2."""
    return tl.exp2(b_x * LOG2E - lse) * per_probability - uniform


@triton.jit
def teacher_gradient(b_x, b_t, coolness, hot_lse, teacher_lse, per_hot):
    """Of the divergence from the teacher's logits ``b_t``; log-sum-exps in base 2, at the temperature."""
    b_own = tl.exp2(b_x * (LOG2E * coolness) - hot_lse)
    return per_hot * (b_own - tl.exp2(b_t * (LOG2E * coolness) - teacher_lse))


@triton.jit
def through_softcap(b_g, b_x, softcap):
    """The softcap's derivative is 1 - tanh^2; nothing comes from beyond the columns, where x is -inf."""
    b_tanh = b_x / softcap
    return tl.where(b_x == float("-inf"), 0.0, b_g * (1.0 - b_tanh * b_tanh))


@triton.jit
def row_gradient(
    p_row, p_gradient, p_bias, p_teacher, p_teacher_bias, columns, stride_row, softcap, coolness,
    lse, hot_lse, teacher_lse, per_probability, per_hot, uniform, at_target, target, target_x,
    SOFTCAP: tl.constexpr, EDGE: tl.constexpr,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """d loss / d logit of the row; the target's is corrected once the row is written."""
    o_lane = tl.arange(0, BLOCK // VECTOR) * VECTOR
    o_vector = tl.arange(0, VECTOR)
    for first in tl.range(0, stride_row, BLOCK, num_stages=STAGES):
        o_v = first + o_lane[:, None] + o_vector[None, :]
        b_x = load_logits(p_row, p_bias, o_v, columns, stride_row, softcap, SOFTCAP, EDGE)
        b_g = softmax_gradient(b_x, lse, per_probability, uniform)
        if p_teacher is not None:
            b_t = load_logits(p_teacher, p_teacher_bias, o_v, columns, stride_row, softcap, SOFTCAP, EDGE)
            b_g += teacher_gradient(b_x, b_t, coolness, hot_lse, teacher_lse, per_hot)
        if SOFTCAP:
            b_g = through_softcap(b_g, b_x, softcap)
        tl.store(p_gradient + o_v, b_g.to(p_gradient.dtype.element_ty), mask=o_v < stride_row)
    m_here = (target >= 0) & (target < columns)
    at = softmax_gradient(target_x, lse, per_probability, uniform) - at_target
    if p_teacher is not None:
        target_t = load_one(p_teacher, p_teacher_bias, target, m_here, softcap, SOFTCAP)
        at += teacher_gradient(target_x, target_t, coolness, hot_lse, teacher_lse, per_hot)
    if SOFTCAP:
        at = through_softcap(at, target_x, softcap)
    tl.debug_barrier()  # another thread has written the target's column
    tl.store(p_gradient + target, at.to(p_gradient.dtype.element_ty), mask=m_here)


@triton.jit
def load_one(p_row, p_bias, i_v, m_here, softcap, SOFTCAP: tl.constexpr):
    """The logit of one column; 0 where it is not this shard's."""
    x = tl.load(p_row + i_v, mask=m_here, other=0.0).to(tl.float32)
    if p_bias is not None:
        x += tl.load(p_bias + i_v, mask=m_here, other=0.0).to(tl.float32)
    if SOFTCAP:
        x = softcap * tanh(x / softcap)
    return x


@triton.jit
def zero_row(p_row, stride_row, BLOCK: tl.constexpr):
    o_lane = tl.arange(0, BLOCK)
    b_zero = tl.zeros([BLOCK], p_row.dtype.element_ty)
    for first in range(0, stride_row, BLOCK):
        tl.store(p_row + first + o_lane, b_zero, mask=first + o_lane < stride_row)


@triton.jit
def exit_rows_kernel(
    p_logits, p_gradient, p_bias, p_teacher, p_teacher_bias, p_targets, p_means, p_state, p_lse, p_best,
    p_sums, rows, columns, stride_row, stride_state, stride_sums, first_column, vocabulary, exit_weight, magnify,
    smoothing, z_loss, softcap, distillation, temperature,
    STATISTICS: tl.constexpr, FINISH: tl.constexpr, LAST: tl.constexpr, SOFTCAP: tl.constexpr,
    SMOOTH: tl.constexpr, HOT: tl.constexpr, EDGE: tl.constexpr,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Statistics of the row, or those merged over shards in ``p_state``; losses; gradient.

    ``p_lse`` and ``p_best``: the last exit's log-sum-exp at the temperature and its most probable column,
    written with LAST and read without. ``first_column`` is where this shard of the vocabulary starts.
    """
    for i_row in range(tl.program_id(0), rows, tl.num_programs(0)):
        o_row = tl.cast(i_row, tl.int64) * stride_row
        p_row = p_logits + o_row
        mean = tl.load(p_means + i_row)
        if mean == 0.0:  # an ignored token: its logits are not looked at
            if FINISH:
                for i in tl.static_range(5):
                    tl.store(p_sums + i * stride_sums + i_row, 0.0)
                if p_gradient is not None:
                    zero_row(p_gradient + o_row, stride_row, BLOCK)
            elif STATISTICS:
                for i in tl.static_range(7):
                    tl.store(p_state + i * stride_state + i_row, 0.0)
        else:
            coolness = 1.0 / temperature
            target = tl.load(p_targets + i_row)
            here = target - first_column  # in this shard's columns
            p_there, teacher_lse = None, 0.0
            if p_teacher is not None:
                p_there = p_teacher + o_row
                teacher_lse = tl.load(p_lse + i_row)
            if STATISTICS:
                m_here = (here >= 0) & (here < columns)
                target_x = load_one(p_row, p_bias, here, m_here, softcap, SOFTCAP)
                top, column, total, sum_x, hot, cross = row_statistics(
                    p_row, p_bias, p_there, p_teacher_bias, teacher_lse, columns, stride_row, softcap, coolness,
                    SOFTCAP, SMOOTH, HOT, EDGE, BLOCK, VECTOR, STAGES,
                )  # fmt: skip
                best = first_column + column
                if not FINISH:
                    tl.store(p_state + i_row, top)
                    tl.store(p_state + stride_state + i_row, best.to(tl.float32))
                    tl.store(p_state + 2 * stride_state + i_row, target_x)
                    tl.store(p_state + 3 * stride_state + i_row, total)
                    tl.store(p_state + 4 * stride_state + i_row, sum_x)
                    tl.store(p_state + 5 * stride_state + i_row, hot)
                    tl.store(p_state + 6 * stride_state + i_row, cross)
            else:
                top = tl.load(p_state + i_row)
                best = tl.load(p_state + stride_state + i_row).to(tl.int32)
                target_x = tl.load(p_state + 2 * stride_state + i_row)
                total = tl.load(p_state + 3 * stride_state + i_row)
                sum_x = tl.load(p_state + 4 * stride_state + i_row)
                hot = tl.load(p_state + 5 * stride_state + i_row)
                cross = tl.load(p_state + 6 * stride_state + i_row)
            if FINISH:
                lse = top * LOG2E + tl.log2(total)  # in base 2
                hot_lse = lse
                if HOT:
                    hot_lse = top * LOG2E * coolness + tl.log2(hot)
                # A target outside the vocabulary spoils the loss and its gradient, rather than reading elsewhere.
                known = (target >= 0) & (target < vocabulary)
                nll = tl.where(known, lse * LN2 - target_x, float("nan"))
                plain = 1.0 - distillation if p_teacher is not None else 1.0
                loss = nll
                if SMOOTH:
                    loss += smoothing * (target_x - sum_x / vocabulary)
                loss *= plain
                if p_teacher is not None:
                    kl = cross * coolness + (hot_lse - teacher_lse) * LN2
                    loss += distillation * temperature * temperature * kl
                loss += z_loss * (lse * LN2) * (lse * LN2)
                if LAST:
                    tl.store(p_lse + i_row, hot_lse)
                    tl.store(p_best + i_row, best)
                    last_best = best
                else:
                    last_best = tl.load(p_best + i_row)
                tl.store(p_sums + i_row, exit_weight * mean * loss)
                tl.store(p_sums + stride_sums + i_row, mean * nll)
                tl.store(p_sums + 2 * stride_sums + i_row, tl.where(best == target, mean, 0.0))
                tl.store(p_sums + 3 * stride_sums + i_row, tl.where(best == last_best, mean, 0.0))
                tl.store(p_sums + 4 * stride_sums + i_row, mean / total)
                if p_gradient is not None:
                    scale = tl.where(known, exit_weight * mean * magnify, float("nan"))
                    row_gradient(
                        p_row, p_gradient + o_row, p_bias, p_there, p_teacher_bias, columns, stride_row, softcap,
                        coolness, lse, hot_lse, teacher_lse, scale * (plain + 2.0 * z_loss * lse * LN2),
                        scale * distillation * temperature, scale * plain * smoothing / vocabulary,
                        scale * plain * (1.0 - smoothing), here, target_x, SOFTCAP, EDGE, BLOCK, VECTOR, STAGES,
                    )  # fmt: skip


def row_launch(call: LossCall, chunk: Chunk, index: int, *, statistics: bool, finish: bool) -> Launch:
    """The launch over the rows of exit ``index`` in ``chunk``.

    Args:
        statistics: make them from the logits, rather than read the merged ones of ``chunk.state``.
        finish: write losses and the gradient, rather than this shard's statistics to ``chunk.state``.
    """
    options = call.options
    last = index == call.exits - 1
    teacher = None if last else chunk.teacher
    rows = chunk.rows
    gradient = chunk.gradient if call.needs_gradient(index) and finish else None
    sums = call.row_sums[:, index, rows]
    assert len(ROW_SUMS) == 5
    assert len(STATES) == 7
    arguments: dict[str, Any] = {
        "p_logits": chunk.logits,
        "p_gradient": gradient,
        "p_bias": call.bias_of(index),
        "p_teacher": teacher,
        "p_teacher_bias": None if teacher is None else call.bias_of(call.exits - 1),
        "p_targets": call.targets_N[rows],
        "p_means": call.means_N[rows],
        "p_state": chunk.state,
        "p_lse": chunk.lse,
        "p_best": chunk.best,
        "p_sums": sums,
        "rows": rows.stop - rows.start,
        "columns": call.columns,
        "stride_row": chunk.logits.stride(0),
        "stride_state": 0 if chunk.state is None else chunk.state.stride(0),
        "stride_sums": sums.stride(0),
        "first_column": options.first_column,
        "vocabulary": call.vocabulary,
        "exit_weight": call.exit_weights[index],
        "magnify": call.magnify,
        "smoothing": options.label_smoothing,
        "z_loss": options.z_loss,
        "softcap": 1.0 if options.softcap is None else options.softcap,
        "distillation": options.distillation,
        "temperature": options.temperature,
        "STATISTICS": statistics,
        "FINISH": finish,
        "LAST": last,
        "SOFTCAP": options.softcap is not None,
        "SMOOTH": options.label_smoothing != 0.0,
        "HOT": options.distillation != 0.0 and options.temperature != 1.0,
        "EDGE": chunk.logits.stride(0) != call.columns,
        "BLOCK": call.tiles.block,
        "VECTOR": 16 // chunk.logits.element_size(),
        "STAGES": call.tiles.stages,
    }
    programs = min(rows.stop - rows.start, call.tiles.programs * call.processors)
    return Launch(exit_rows_kernel, (programs,), arguments, num_warps=call.tiles.warps)
