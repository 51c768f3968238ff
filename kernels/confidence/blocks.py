"""The kernel that reads the output matrix: one vocabulary block and row tile, summed up on the spot.

Logits never leave the program. They are the skinny linear's: the same tile function in the same order.

Shapes: N rows, C model dim, V vocabulary.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from lit_eff.kernels.elementary import tanh
from lit_eff.kernels.linear.norm import statistics
from lit_eff.kernels.linear.tile import products


@triton.jit
def below(b_logits, b_max):
    """How far logits lie below the maximum; those of -inf far enough to weigh nothing, yet not infinitely."""
    return tl.where(b_logits == float("-inf"), -1e30, b_logits - b_max)


@triton.jit
def summary(b_logits, o_v, m_v, factor):
    """(BLOCK_V, ROWS) logits to each row's maximum, its place, the second largest, sum of weights
    w = 2^((logit - maximum) * factor), and sum of w (logit - maximum).
    """
    b_logits = tl.where(m_v[:, None], b_logits, float("-inf"))
    b_max = tl.max(b_logits, 0)
    b_best = tl.min(tl.where(b_logits == b_max[None, :], o_v[:, None], 2147483647), 0)
    b_second = tl.max(tl.where(o_v[:, None] == b_best[None, :], float("-inf"), b_logits), 0)
    b_below = below(b_logits, b_max[None, :])
    b_weight = tl.exp2(b_below * factor)
    return b_max, b_best, b_second, tl.sum(b_weight, 0), tl.sum(b_weight * b_below, 0)


@triton.jit(do_not_specialize=["rows"])
def confidence_blocks_kernel(
    x, weight, scales, norm, p_bias, p_max, p_best, p_second, p_sum, p_moment,
    rows, vocabulary, channels, blocks, factor, inverse_cap,
    ROWS: tl.constexpr, BLOCK_O: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr,
    CENTERED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    row_tiles = tl.cdiv(rows, ROWS)
    i_n = tl.program_id(0) % row_tiles
    i_v = tl.program_id(0) // row_tiles
    o_v = i_v * BLOCK_O + tl.arange(0, BLOCK_O)
    o_weight = tl.minimum(o_v, vocabulary - 1)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    o_n = i_n * ROWS + tl.arange(0, ROWS)
    m_n = o_n < rows
    b_mean, b_rstd = None, None
    if CENTERED is not None:
        b_mean, b_rstd = statistics(x, norm.epsilon, o_n, m_n, channels, ROWS, CENTERED)
    b_logits = products(
        x, weight, scales, norm, b_mean, b_rstd, o_n, m_n, o_weight, channels,
        ROWS, BLOCK_O, LANES, CHUNK, EVEN,
    )  # fmt: skip
    if p_bias is not None:
        b_logits += tl.load(p_bias + o_weight).to(tl.float32)[:, None]
    if inverse_cap is not None:  # in units of the cap
        b_logits = tanh(b_logits * inverse_cap)
    b_max, b_best, b_second, b_sum, b_moment = summary(b_logits, o_v, o_v < vocabulary, factor)
    if EARLY:
        # Not before: programs of the join would pile up where a multiprocessor has room, and wait there.
        tl.extra.cuda.gdc_launch_dependents()
    o_part = o_n.to(tl.int64) * blocks + i_v
    tl.store(p_max + o_part, b_max, mask=m_n)
    tl.store(p_best + o_part, b_best, mask=m_n)
    tl.store(p_second + o_part, b_second, mask=m_n)
    tl.store(p_sum + o_part, b_sum, mask=m_n)
    tl.store(p_moment + o_part, b_moment, mask=m_n)
