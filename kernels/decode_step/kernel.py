"""The decode step: layers [first, last) of a Llama-type transformer in one launch of co-resident programs.

Every program takes its share of every phase, and all wait for one another in between. As soon as it has read
a phase's weights, a program brings the first of those that it will read next into the L2 cache: the memory
has work meanwhile. With a PHASE, the launch runs that phase of layer ``first`` and no barrier: the
host, or the stream's order, does the waiting. That form runs in the interpreter, whose programs come one
after the other.

Shapes: N rows, C model dim, H query heads, K kv heads, D head dim, M MLP inner width.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from lit_eff.kernels.decode_step.ahead import pairs_ahead, read_ahead, rows_ahead
from lit_eff.kernels.decode_step.attention import attention_phase, cache_ahead, longest_of
from lit_eff.kernels.decode_step.barrier import next_phase, stamp, wait_for_all
from lit_eff.kernels.decode_step.phases import (
    embed_phase,
    gate_up_phase,
    normed_phase,
    place_of,
    qkv_phase,
    residual_phase,
)
from lit_eff.kernels.decode_step.product import share


@triton.jit
def advanced(row, rows, advance, ROWS: tl.constexpr):
    """Move every row ``advance`` positions on."""
    for n in tl.range(0, rows, ROWS):
        o_n = n + tl.arange(0, ROWS)
        b_position = tl.load(row.position + o_n, mask=o_n < rows, other=0)
        tl.store(row.position + o_n, b_position + advance, mask=o_n < rows)


@triton.jit(do_not_specialize=["rows", "norms", "first", "last", "advance", "capacity", "chunks"])
def decode_step_kernel(
    weights, row, cache, work, p_trace, rows, norms, first, last, advance, capacity, chunks, epsilon, scale,
    CHANNELS: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    INNER: tl.constexpr, ROWS: tl.constexpr, GROUP_TILE: tl.constexpr, KEYS: tl.constexpr,
    WARP_KEYS: tl.constexpr, STAGES_KEYS: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr,
    STAGES: tl.constexpr, LANES_INNER: tl.constexpr, CHUNK_INNER: tl.constexpr, STAGES_INNER: tl.constexpr,
    BLOCK_QKV: tl.constexpr, BLOCK_HIDDEN: tl.constexpr, BLOCK_INNER: tl.constexpr, BLOCK_C: tl.constexpr,
    EMBED: tl.constexpr, FINAL: tl.constexpr, PHASE: tl.constexpr, AHEAD_QKV: tl.constexpr,
    AHEAD_OUTPUT: tl.constexpr, AHEAD_GATE_UP: tl.constexpr, AHEAD_DOWN: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    ALONE: tl.constexpr = PHASE is not None
    QKV: tl.constexpr = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    HEADS_DIM: tl.constexpr = HEADS * HEAD_DIM
    i, programs = tl.program_id(0), tl.num_programs(0)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    target, event = 0, 1
    if not ALONE:
        stamp(p_trace, i, programs, 0)
        target = tl.load(work.barrier + 1, cache_modifier=".cg")
    first_qkv, last_qkv = share(i, QKV // 2, programs)
    first_hidden, last_hidden = share(i, CHANNELS, programs)
    first_inner, last_inner = share(i, INNER, programs)
    # What attention wants to know is the same in all layers.
    longest = longest_of(row, rows, ROWS)
    i_row = i % (rows * KV_HEADS) // KV_HEADS
    position, sequence = tl.load(row.position + i_row), tl.load(row.sequence + i_row)
    # So are the places and the angles of the first tile of queries, keys and values.
    first_tile = place_of(weights, row, first_qkv, last_qkv, 0, rows, HEAD_DIM // 2, BLOCK_QKV // 2, ROWS)
    pairs, channels, inner = last_qkv - first_qkv, last_hidden - first_hidden, last_inner - first_inner
    if (EMBED and not ALONE) or PHASE == "embed":
        if not ALONE:
            ahead = pairs_ahead(weights.qkv, first_qkv, pairs, HEAD_DIM // 2, AHEAD_QKV, CHANNELS)
            read_ahead(ahead, True)
        embed_phase(
            weights, row, work, rows, norms, capacity, i, programs, CHANNELS, ROWS, BLOCK_HIDDEN, BLOCK_C
        )
        if not ALONE:
            target, event = next_phase(work, p_trace, i, programs, target, event)
    for i_layer in tl.range(first, last, num_stages=1):
        layer = tl.full([], 0, tl.int64) + i_layer  # the interpreter's counters have no dtype
        p_output = weights.output + layer * (CHANNELS * HEADS_DIM)
        p_gate_up = weights.gate_up + layer * (2 * INNER * CHANNELS)
        p_down = weights.down + layer * (CHANNELS * INNER)
        output_ahead, down_ahead, qkv_ahead = (), (), ()
        if not ALONE:
            output_ahead = rows_ahead(p_output, first_hidden, channels, AHEAD_OUTPUT, HEADS_DIM)
            if AHEAD_OUTPUT > 0:
                output_ahead += cache_ahead(cache, layer, rows, position, sequence, i, KV_HEADS, KEYS)
        if not ALONE or PHASE == "qkv":
            qkv_phase(
                weights, row, cache, work, layer, rows, epsilon, i, programs, first_tile, output_ahead,
                CHANNELS, HEADS, KV_HEADS, HEAD_DIM, ROWS, BLOCK_QKV, LANES, CHUNK, STAGES,
            )  # fmt: skip
        if not ALONE:
            target, event = next_phase(work, p_trace, i, programs, target, event)
        if not ALONE or PHASE == "attention":
            attention_phase(
                row, cache, work, layer, rows, longest, position, sequence, chunks, scale, i, programs,
                HEADS, KV_HEADS, HEAD_DIM, GROUP_TILE, KEYS, WARP_KEYS, STAGES_KEYS,
            )  # fmt: skip
        if not ALONE:
            gates = rows_ahead(p_gate_up, first_inner, inner, AHEAD_GATE_UP, CHANNELS)
            ups = rows_ahead(p_gate_up + INNER * CHANNELS, first_inner, inner, AHEAD_GATE_UP, CHANNELS)
            read_ahead(gates + ups, True)
            target, event = next_phase(work, p_trace, i, programs, target, event)
        if not ALONE or PHASE == "output":
            residual_phase(
                work.attended, p_output, weights, 2 * layer + 1, work, rows, i, programs, (), HEADS_DIM,
                CHANNELS, ROWS, BLOCK_HIDDEN, LANES, CHUNK, STAGES,
            )  # fmt: skip
        if not ALONE:
            target, event = next_phase(work, p_trace, i, programs, target, event)
            down_ahead = rows_ahead(p_down, first_hidden, channels, AHEAD_DOWN, INNER)
        if not ALONE or PHASE == "gate_up":
            gate_up_phase(
                weights, work, layer, rows, epsilon, i, programs, down_ahead,
                CHANNELS, INNER, ROWS, BLOCK_INNER, LANES_INNER, CHUNK_INNER, STAGES_INNER,
            )  # fmt: skip
        if not ALONE:
            target, event = next_phase(work, p_trace, i, programs, target, event)
            p_qkv = weights.qkv + (layer + 1) * (QKV * CHANNELS)
            next_pairs = tl.where(layer + 1 < last, pairs, 0)
            qkv_ahead = pairs_ahead(p_qkv, first_qkv, next_pairs, HEAD_DIM // 2, AHEAD_QKV, CHANNELS)
        if not ALONE or PHASE == "down":
            residual_phase(
                work.inner, p_down, weights, 2 * layer + 2, work, rows, i, programs, qkv_ahead, INNER,
                CHANNELS, ROWS, BLOCK_HIDDEN, LANES, CHUNK, STAGES,
            )  # fmt: skip
        if not ALONE and layer + 1 < last:
            target, event = next_phase(work, p_trace, i, programs, target, event)
    if (FINAL and not ALONE) or PHASE == "normed":
        if not ALONE:
            target += programs
            wait_for_all(work.barrier, target)
        normed_phase(work, norms - 1, rows, epsilon, i, programs, CHANNELS, ROWS, BLOCK_HIDDEN)
    if not ALONE:
        stamp(p_trace, i, programs, event)
    # All programs are past the last barrier that this one is past, hence past what they read here.
    if i == 0:
        if not ALONE:
            tl.store(work.barrier + 1, target)
        if not ALONE or PHASE == "down":
            advanced(row, rows, advance, ROWS)
