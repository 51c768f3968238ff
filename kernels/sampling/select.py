"""Which tokens of a row are kept: the largest logit, then top-k's and top-p's borders, by counting in bins.

Tokens are ordered by distance, equals by index, and both truncations keep a beginning of that order: a
distance (the border) and how many of the tokens that far. A distance has 26 bits. A first pass over the row
adds up tokens and weights by the upper ones; the bin a border falls into is then resolved by the lower ones.
Of each pass over a row, its last program to finish reads the bins; sums of integers have one value in any
order, so how programs are scheduled changes no bit.

Shapes: N rows, V vocabulary. Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from lit_eff.kernels.sampling.weights import (
    BORDER,
    COUNT_ABOVE,
    COUNT_BIN,
    COUNT_REST,
    DEAD,
    EQUALS,
    MASS_BIN,
    MASS_REST,
    STATE,
    TOTAL,
    arrives_last,
    distances,
    logits_at,
    row_of,
    scale_of,
    weights_of,
)

BINS = tl.constexpr(8192)  # of either level; distances reach into 44 * 128 of the coarse ones
FINE_BITS = tl.constexpr(13)
GROUPS = tl.constexpr(64)  # of bins, for looking one up in two steps


@triton.jit
def reached(p_bins, goal):
    """The first bin whose cumulative sum reaches ``goal``, and the sum before it."""
    o_group = tl.arange(0, GROUPS)
    o_bin = tl.arange(0, BINS // GROUPS)
    b_bins = tl.load(p_bins + o_group[:, None] * (BINS // GROUPS) + o_bin[None, :], cache_modifier=".cg")
    b_sum = tl.sum(b_bins.to(tl.int64), 1)
    i_group = tl.sum((tl.cumsum(b_sum, 0) < goal).to(tl.int32), 0)
    before = tl.sum(tl.where(o_group < i_group, b_sum, 0), 0)
    b_bin = tl.load(p_bins + i_group * (BINS // GROUPS) + o_bin, cache_modifier=".cg").to(tl.int64)
    i_bin = tl.sum((before + tl.cumsum(b_bin, 0) < goal).to(tl.int32), 0)
    return i_group * (BINS // GROUPS) + i_bin, before + tl.sum(tl.where(o_bin < i_bin, b_bin, 0), 0)


@triton.jit
def sum_before(p_bins, i_bin):
    """Sum of the bins before ``i_bin``."""
    o_bin = tl.arange(0, BINS)
    return tl.sum(tl.load(p_bins + o_bin, mask=o_bin < i_bin, other=0, cache_modifier=".cg").to(tl.int64), 0)


@triton.jit
def aim_at_mass(p_row_state, p_masses, p_top_p, i_b, mass):
    """Set the coarse bin of top-p's border, where so much weight is left by top-k."""
    if p_top_p is not None:
        top_p = tl.load(p_top_p + i_b)
        if top_p < 1.0:
            goal = tl.maximum((top_p.to(tl.float64) * mass.to(tl.float64)).to(tl.int64), 1)
            i_bin, before = reached(p_masses, goal)
            tl.store(p_row_state + MASS_BIN, i_bin.to(tl.int64))
            tl.store(p_row_state + MASS_REST, goal - before)


@triton.jit(do_not_specialize=["blocks"])
def peak_kernel(
    rows, p_peak, p_state, vocabulary, blocks, BLOCK: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    """The largest logit of each block; the first program sets the row's state to keep everything."""
    i_n, i_v = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    p_row, _ = row_of(rows, i_n)
    o_v = i_v * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_peak + i_n.to(tl.int64) * blocks + i_v, tl.max(logits_at(p_row, o_v, o_v < vocabulary), 0))
    if i_v == 0:
        p_row_state = p_state + i_n.to(tl.int64) * STATE
        tl.store(p_row_state + BORDER, DEAD)
        tl.store(p_row_state + EQUALS, 0)
        tl.store(p_row_state + TOTAL, 0)
        tl.store(p_row_state + COUNT_BIN, -1)
        tl.store(p_row_state + MASS_BIN, -1)


@triton.jit(do_not_specialize=["blocks"])
def coarse_kernel(
    rows, p_peak, p_temperature, p_top_k, p_top_p, p_state, p_counts, p_masses, p_done, vocabulary, blocks,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Tokens and weights by coarse bin; then the bins of the borders, as far as they are known."""
    i_n, i_v = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    p_row, i_b = row_of(rows, i_n)
    largest, factor, greedy, sound = scale_of(p_peak, p_temperature, i_n, i_b, blocks, BLOCKS)
    top_k = 0
    if p_top_k is not None:
        top_k = tl.load(p_top_k + i_b)
    top_p = 1.0
    if p_top_p is not None:
        top_p = tl.load(p_top_p + i_b)
    if sound & (greedy == 0) & ((top_k > 0) | (top_p < 1.0)):
        o_v = i_v * BLOCK + tl.arange(0, BLOCK)
        b_x = distances(logits_at(p_row, o_v, o_v < vocabulary), largest, factor, greedy)
        b_bin = b_x >> FINE_BITS
        p_row_counts = p_counts + i_n.to(tl.int64) * BINS
        p_row_masses = p_masses + i_n.to(tl.int64) * BINS
        if p_top_k is not None:
            tl.atomic_add(p_row_counts + b_bin, 1, mask=b_x < DEAD, sem="relaxed")
        tl.atomic_add(p_row_masses + b_bin, weights_of(b_x), mask=b_x < DEAD, sem="relaxed")
        if arrives_last(p_done + i_n, blocks):
            p_row_state = p_state + i_n.to(tl.int64) * STATE
            counted = False
            if p_top_k is not None:
                counted = (top_k > 0) & (top_k < sum_before(p_row_counts, BINS))
                if counted:
                    i_bin, before = reached(p_row_counts, top_k)
                    tl.store(p_row_state + COUNT_BIN, i_bin.to(tl.int64))
                    tl.store(p_row_state + COUNT_REST, top_k - before)
                    tl.store(p_row_state + COUNT_ABOVE, sum_before(p_row_masses, i_bin))
            if counted == 0:
                aim_at_mass(p_row_state, p_row_masses, p_top_p, i_b, sum_before(p_row_masses, BINS))


@triton.jit(do_not_specialize=["blocks"])
def fine_count_kernel(
    rows, p_peak, p_temperature, p_top_p, p_state, p_masses, p_fine_counts, p_fine_masses, p_done, vocabulary,
    blocks, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Top-k's border within its coarse bin; then the bin of top-p's."""
    i_n, i_v = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    p_row_state = p_state + i_n.to(tl.int64) * STATE
    i_bin = tl.load(p_row_state + COUNT_BIN).to(tl.int32)
    if i_bin >= 0:
        p_row, i_b = row_of(rows, i_n)
        largest, factor, greedy, _ = scale_of(p_peak, p_temperature, i_n, i_b, blocks, BLOCKS)
        o_v = i_v * BLOCK + tl.arange(0, BLOCK)
        b_x = distances(logits_at(p_row, o_v, o_v < vocabulary), largest, factor, greedy)
        m_bin = (b_x >> FINE_BITS == i_bin) & (b_x < DEAD)
        b_fine = b_x & (BINS - 1)
        p_row_counts = p_fine_counts + i_n.to(tl.int64) * BINS
        p_row_masses = p_fine_masses + i_n.to(tl.int64) * BINS
        tl.atomic_add(p_row_counts + b_fine, 1, mask=m_bin, sem="relaxed")
        tl.atomic_add(p_row_masses + b_fine, weights_of(b_x), mask=m_bin, sem="relaxed")
        if arrives_last(p_done + i_n, blocks):
            rest = tl.load(p_row_state + COUNT_REST)
            i_fine, before = reached(p_row_counts, rest)
            border = (i_bin << FINE_BITS) + i_fine
            tl.store(p_row_state + BORDER, border.to(tl.int64))
            tl.store(p_row_state + EQUALS, rest - before)
            if p_top_p is not None:
                mass = tl.load(p_row_state + COUNT_ABOVE) + sum_before(p_row_masses, i_fine)
                mass += (rest - before) * weights_of(border)
                aim_at_mass(p_row_state, p_masses + i_n.to(tl.int64) * BINS, p_top_p, i_b, mass)


@triton.jit(do_not_specialize=["blocks"])
def fine_mass_kernel(
    rows, p_peak, p_temperature, p_state, p_fine_masses, p_done, vocabulary, blocks,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Top-p's border within its coarse bin."""
    i_n, i_v = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    p_row_state = p_state + i_n.to(tl.int64) * STATE
    i_bin = tl.load(p_row_state + MASS_BIN).to(tl.int32)
    if i_bin >= 0:
        p_row, i_b = row_of(rows, i_n)
        largest, factor, greedy, _ = scale_of(p_peak, p_temperature, i_n, i_b, blocks, BLOCKS)
        o_v = i_v * BLOCK + tl.arange(0, BLOCK)
        b_x = distances(logits_at(p_row, o_v, o_v < vocabulary), largest, factor, greedy)
        m_bin = (b_x >> FINE_BITS == i_bin) & (b_x < DEAD)
        p_row_masses = p_fine_masses + i_n.to(tl.int64) * BINS
        tl.atomic_add(p_row_masses + (b_x & (BINS - 1)), weights_of(b_x), mask=m_bin, sem="relaxed")
        if arrives_last(p_done + i_n, blocks):
            rest = tl.load(p_row_state + MASS_REST)
            i_fine, before = reached(p_row_masses, rest)
            border = (i_bin << FINE_BITS) + i_fine
            weight = weights_of(border)
            tl.store(p_row_state + BORDER, border.to(tl.int64))
            tl.store(p_row_state + EQUALS, (rest - before + weight - 1) // weight)
