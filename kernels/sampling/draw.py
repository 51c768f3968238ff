"""The weight of what a row keeps, and tokens drawn from it.

A program adds up one block; the last of a row finds the block that a random place of the total falls into,
and the token in it. Further draws leave out the tokens before them.

Shapes: N rows, V vocabulary, J draws. Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from lit_eff.kernels.sampling.weights import (
    STATE,
    TOTAL,
    arrives_last,
    border_of,
    distances,
    floor_of,
    kept,
    located,
    logits_at,
    random_word,
    row_of,
    scale_of,
    share,
    weights_of,
)


@triton.jit(do_not_specialize=["blocks"])
def draw_kernel(
    rows, p_peak, p_temperature, p_min_p, p_state, p_above, p_equal, p_done, p_seed, p_position, p_token,
    p_logprob, vocabulary, blocks,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, DRAWS: tl.constexpr, SLOTS: tl.constexpr,
    PURPOSE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """``p_above`` and ``p_equal`` are each block's weight below the border and tokens on it."""
    i_n, i_v = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    p_row, i_b = row_of(rows, i_n)
    largest, factor, greedy, sound = scale_of(p_peak, p_temperature, i_n, i_b, blocks, BLOCKS)
    border, equals = border_of(p_state, i_n, greedy)
    floor = floor_of(p_min_p, i_b)
    o_v = i_v * BLOCK + tl.arange(0, BLOCK)
    b_x = distances(logits_at(p_row, o_v, o_v < vocabulary), largest, factor, greedy)
    b_w = weights_of(b_x)
    o_part = i_n.to(tl.int64) * blocks
    tl.store(p_above + o_part + i_v, tl.sum(tl.where((b_x < border) & (b_w >= floor), b_w, 0), 0))
    tl.store(p_equal + o_part + i_v, tl.sum((b_x == border).to(tl.int32), 0))
    if arrives_last(p_done + i_n, blocks):
        o_block = tl.arange(0, BLOCKS)
        m_block = o_block < blocks
        b_above = tl.load(p_above + o_part + o_block, mask=m_block, other=0, cache_modifier=".cg")
        b_equal = tl.load(p_equal + o_part + o_block, mask=m_block, other=0, cache_modifier=".cg")
        b_equal_before = tl.cumsum(b_equal, 0) - b_equal
        b_equal_kept = tl.minimum(b_equal, tl.maximum(equals - b_equal_before, 0))
        weight = weights_of(border)
        b_kept = b_above + b_equal_kept * tl.where(weight >= floor, weight, 0)
        total = tl.where(sound, tl.sum(b_kept, 0), 0)
        tl.store(p_state + i_n.to(tl.int64) * STATE + TOTAL, total)
        if DRAWS > 0:
            seed = tl.load(p_seed + i_b)
            position = tl.load(p_position + i_b)
            o_slot = tl.arange(0, SLOTS)
            b_gone = tl.full((SLOTS,), -1, tl.int32)  # tokens drawn before, and their weights
            b_gone_weight = tl.full((SLOTS,), 0, tl.int64)
            left = total
            for i_slot in range(DRAWS):
                token = tl.full((), -1, tl.int32)
                taken = tl.full((), 0, tl.int64)
                if left > 0:
                    b_sums = b_kept
                    if DRAWS > 1:
                        m_gone = (b_gone // BLOCK)[None, :] == o_block[:, None]
                        m_gone = m_gone & (b_gone >= 0)[None, :]
                        b_sums -= tl.sum(tl.where(m_gone, b_gone_weight[None, :], 0), 1)
                    place = share(random_word(seed, position, PURPOSE, i_slot), left)
                    i_block, before = located(b_sums, place)
                    o_v = i_block * BLOCK + tl.arange(0, BLOCK)
                    b_x = distances(logits_at(p_row, o_v, o_v < vocabulary), largest, factor, greedy)
                    equal_before = tl.sum(tl.where(o_block == i_block, b_equal_before, 0), 0)
                    b_w = kept(b_x, weights_of(b_x), border, equals, floor, equal_before)
                    if DRAWS > 1:
                        m_gone = (o_v[:, None] == b_gone[None, :]).to(tl.int32)
                        b_w = tl.where(tl.sum(m_gone, 1) > 0, 0, b_w)
                    i_found, _ = located(b_w, place - before)
                    token = i_block * BLOCK + i_found
                    taken = tl.sum(tl.where(o_v == token, b_w, 0), 0)
                    b_gone = tl.where(o_slot == i_slot, token, b_gone)
                    b_gone_weight = tl.where(o_slot == i_slot, taken, b_gone_weight)
                    left -= taken
                o_out = i_n.to(tl.int64) * DRAWS + i_slot
                tl.store(p_token + o_out, token.to(tl.int64))
                b_logs = tl.log2(taken.to(tl.float32)) - tl.log2(total.to(tl.float32))
                tl.store(p_logprob + o_out, b_logs * 0.6931471805599453)
