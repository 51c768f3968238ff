"""Joining what the vocabulary blocks found: one program a row, all blocks in one fixed order.

Shapes: N rows, V vocabulary. Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from lit_eff.kernels.confidence.blocks import below


@triton.jit
def confidence_join_kernel(
    p_max, p_best, p_second, p_sum, p_moment, p_threshold,
    p_token, p_probability, p_gap, p_entropy, p_lse, p_exit,
    blocks, vocabulary, factor, unit, inverse_log_vocabulary,
    BLOCKS: tl.constexpr, MEASURE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    i_n = tl.program_id(0)
    o_block = tl.arange(0, BLOCKS)
    m_block = o_block < blocks
    o_part = i_n.to(tl.int64) * blocks + o_block
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    b_max = tl.load(p_max + o_part, mask=m_block, other=float("-inf"))
    b_best = tl.load(p_best + o_part, mask=m_block, other=2147483647)
    b_second = tl.load(p_second + o_part, mask=m_block, other=float("-inf"))
    b_sum = tl.load(p_sum + o_part, mask=m_block, other=0.0)
    b_moment = tl.load(p_moment + o_part, mask=m_block, other=0.0)

    top = tl.max(b_max, 0)
    best = tl.min(tl.where(b_max == top, b_best, 2147483647), 0)
    second = tl.max(tl.where(b_best == best, b_second, b_max), 0)
    b_below = below(b_max, top)
    b_weight = tl.exp2(b_below * factor)
    total = tl.sum(b_sum * b_weight, 0)
    moment = tl.sum(tl.fma(b_sum, b_below, b_moment) * b_weight, 0)

    probability = 1.0 / total
    gap = (1.0 - tl.exp2((second - top) * factor)) / total
    log_total = tl.log2(total) * 0.6931471805599453  # ln 2
    entropy = log_total - unit * (moment / total)
    if MEASURE == "softmax_response":
        confidence = gap
    elif MEASURE == "max_probability":
        confidence = probability
    else:
        confidence = 1.0 - entropy * inverse_log_vocabulary
    exits = confidence >= tl.load(p_threshold + i_n)
    tl.store(p_token + i_n, tl.minimum(best, vocabulary - 1).to(tl.int64))  # a row of NaN has none
    tl.store(p_probability + i_n, probability)
    tl.store(p_gap + i_n, gap)
    tl.store(p_entropy + i_n, entropy)
    tl.store(p_lse + i_n, tl.fma(unit, top, log_total))
    tl.store(p_exit + i_n, exits)
