"""The kernel between the matrix products: logits of a chunk in, losses and their gradient out.

A program goes from row to row. There are few of them, so that a row's second reading comes from the L2 cache.

Shapes: N tokens (n those of a chunk), V vocabulary, E exits.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from lit_eff.kernels.cross_entropy.call import Chunk, LossCall
from lit_eff.kernels.cross_entropy.row import (
    LOG2E,
    Logits,
    Slope,
    State,
    row_gradient,
    row_statistics,
    zero_row,
)
from lit_eff.profiling.launch import Launch

LN2 = tl.constexpr(0.6931471805599453)


class Terms(NamedTuple):
    """The loss: its terms' factors, and what all gradients are magnified by."""

    exit_weight: Any
    magnify: Any
    smoothing: Any
    z_loss: Any
    distillation: Any
    temperature: Any


class Table(NamedTuple):
    """A number a row in each line of a table."""

    pointer: Any
    stride: Any


@triton.jit
def store_column(table, i_row, values):
    for i in tl.static_range(len(values)):
        tl.store(table.pointer + i * table.stride + i_row, tl.cast(values[i], tl.float32))


@triton.jit
def load_state(table, i_row):
    p_row = table.pointer + i_row
    return State(
        tl.load(p_row),
        tl.load(p_row + table.stride).to(tl.int32),
        tl.load(p_row + 2 * table.stride),
        tl.load(p_row + 3 * table.stride),
        tl.load(p_row + 4 * table.stride),
        tl.load(p_row + 5 * table.stride),
        tl.load(p_row + 6 * table.stride),
    )


@triton.jit
def losses_of(
    state, terms, target, vocabulary, teacher_lse, TAUGHT: tl.constexpr, SMOOTH: tl.constexpr,
    HOT: tl.constexpr,
):  # fmt: skip
    """Loss, cross-entropy, log-sum-exp and that at the temperature (both in base 2), share of the data."""
    coolness = 1.0 / terms.temperature
    lse = state.top * LOG2E + tl.log2(state.total)
    hot_lse = lse
    if HOT:
        hot_lse = state.top * LOG2E * coolness + tl.log2(state.hot)
    # A target outside the vocabulary spoils the loss and the gradient, rather than reading elsewhere.
    known = (target >= 0) & (target < vocabulary)
    nll = tl.where(known, lse * LN2 - state.target, float("nan"))
    loss = nll
    if SMOOTH:
        loss += terms.smoothing * (state.target - state.sum / vocabulary)
    share = 1.0
    if TAUGHT:
        share = 1.0 - terms.distillation
        divergence = state.cross * coolness + (hot_lse - teacher_lse) * LN2
        loss = share * loss + terms.distillation * terms.temperature * terms.temperature * divergence
    loss += terms.z_loss * (lse * LN2) * (lse * LN2)
    return loss, nll, lse, hot_lse, share


@triton.jit
def exit_rows_kernel(
    logits, p_gradient, teacher, p_targets, p_means, p_lse, p_best, sums, state, terms,
    rows, first_column, vocabulary,
    STATISTICS: tl.constexpr, FINISH: tl.constexpr, LAST: tl.constexpr, SMOOTH: tl.constexpr,
    HOT: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """STATISTICS of the rows (without: those merged over shards in ``state``); FINISH: ``sums``, gradient.

    ``p_lse`` and ``p_best``: the last exit's log-sum-exp at the temperature and its most probable column,
    written with LAST and read without. ``first_column`` is where this shard of the vocabulary starts.
    """
    TAUGHT: tl.constexpr = teacher.pointer is not None
    for i_row in range(tl.program_id(0), rows, tl.num_programs(0)):
        o_row = tl.cast(i_row, tl.int64) * logits.stride
        mean = tl.load(p_means + i_row)
        if mean == 0.0:  # an ignored token: its logits are not looked at
            if FINISH:
                store_column(sums, i_row, (0.0, 0.0, 0.0, 0.0, 0.0))
                if p_gradient is not None:
                    zero_row(p_gradient + o_row, logits.stride, BLOCK)
            else:
                store_column(state, i_row, (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0))
        else:
            p_row = logits.pointer + o_row
            p_teacher, teacher_lse = None, 0.0
            if TAUGHT:
                p_teacher = teacher.pointer + o_row
                teacher_lse = tl.load(p_lse + i_row)
            target = tl.load(p_targets + i_row)
            here = target - first_column  # among this shard's columns
            coolness = 1.0 / terms.temperature
            if STATISTICS:
                found = row_statistics(
                    p_row, logits, p_teacher, teacher, teacher_lse, here, first_column, coolness,
                    SMOOTH, HOT, BLOCK, VECTOR, AHEAD,
                )  # fmt: skip
            else:
                found = load_state(state, i_row)
            if FINISH:
                loss, nll, lse, hot_lse, share = losses_of(
                    found, terms, target, vocabulary, teacher_lse, TAUGHT, SMOOTH, HOT
                )
                last_best = found.best
                if LAST:
                    tl.store(p_lse + i_row, hot_lse)
                    tl.store(p_best + i_row, found.best)
                else:
                    last_best = tl.load(p_best + i_row)
                hit, agrees = found.best == target, found.best == last_best
                scale = terms.exit_weight * mean
                store_column(
                    sums,
                    i_row,
                    (
                        scale * loss, mean * nll, tl.where(hit, mean, 0.0), tl.where(agrees, mean, 0.0),
                        mean / found.total,
                    ),
                )  # fmt: skip
                if p_gradient is not None:
                    scale = tl.where(nll == nll, scale * terms.magnify, float("nan"))
                    slope = Slope(
                        lse, hot_lse, teacher_lse, coolness,
                        per_probability=scale * (share + 2.0 * terms.z_loss * lse * LN2),
                        per_hot=scale * terms.distillation * terms.temperature,
                        uniform=scale * share * terms.smoothing / vocabulary,
                        at_target=scale * share * (1.0 - terms.smoothing),
                    )  # fmt: skip
                    row_gradient(
                        p_row, logits, p_gradient + o_row, p_teacher, teacher, slope, here, found.target,
                        BLOCK, VECTOR, AHEAD,
                    )  # fmt: skip
            else:
                store_column(state, i_row, found)


def row_launch(call: LossCall, chunk: Chunk, index: int, *, statistics: bool, finish: bool) -> Launch:
    """The launch over the rows of exit ``index`` in ``chunk``.

    Args:
        statistics: make them from the logits, rather than read the merged ones of ``chunk.state``.
        finish: write losses and the gradient, rather than this shard's statistics to ``chunk.state``.
    """
    options, tiles, rows = call.options, call.tiles, chunk.rows
    last = index == call.exits - 1
    stride = chunk.logits.stride(0)

    def logits_of(pointer: Any, exit_index: int) -> Logits:
        bias = None if pointer is None else call.bias_of(exit_index)
        return Logits(pointer, bias, call.columns, stride, options.softcap)

    sums, state = call.row_sums[:, index, rows], chunk.state
    count = rows.stop - rows.start
    arguments: dict[str, Any] = {
        "logits": logits_of(chunk.logits, index),
        "p_gradient": chunk.gradient if call.needs_gradient(index) and finish else None,
        "teacher": logits_of(None if last else chunk.teacher, call.exits - 1),
        "p_targets": call.targets_N[rows],
        "p_means": call.means_N[rows],
        "p_lse": chunk.lse,
        "p_best": chunk.best,
        "sums": Table(sums, sums.stride(0)),
        "state": Table(state, 0 if state is None else state.stride(0)),
        "terms": Terms(
            call.exit_weights[index],
            call.magnify,
            options.label_smoothing,
            options.z_loss,
            options.distillation,
            options.temperature,
        ),
        "rows": count,
        "first_column": options.first_column,
        "vocabulary": call.vocabulary,
        "STATISTICS": statistics,
        "FINISH": finish,
        "LAST": last,
        "SMOOTH": options.label_smoothing != 0.0,
        "HOT": options.distillation != 0.0 and options.temperature != 1.0,
        "BLOCK": tiles.block,
        "VECTOR": 16 // chunk.logits.element_size(),
        "AHEAD": tiles.ahead,
    }
    programs = min(count, tiles.programs * call.processors)
    return Launch(exit_rows_kernel, (programs,), arguments, num_warps=tiles.warps)
