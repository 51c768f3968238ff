"""Which drafted tokens are kept: recursive rejection over a tree, its random decisions all taken at once.

What p and q become as a parent's children are rejected in turn does not depend on the decisions, only on the
children's tokens. So first the totals of every such residual are found, side by side for all parents; then
each node is tested as if its elder siblings had been rejected; then the kept path is read off; and a last
pass draws the next token. A chain has no siblings, hence no residuals but the last. The semantics are those
of ``lit_eff/runtime/trees.py``.

Shapes: B sequences, V vocabulary, M nodes, R parents, C children of a parent.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from lit_eff.kernels.sampling.weights import (
    ACCEPT,
    STATE,
    TARGET,
    TOTAL,
    arrives_last,
    border_of,
    distances,
    floor_of,
    kept,
    located,
    logits_at,
    probabilities,
    random_word,
    row_of,
    scale_of,
    share,
    weights_of,
)

NONE = tl.constexpr(2147483647)


@triton.jit
def kept_block(
    rows, p_peak, p_temperature, p_min_p, p_state, p_equal, i_n, i_v, vocabulary, blocks,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Kept weights of a row's block; 0 throughout where the row is broken."""
    p_row, i_b = row_of(rows, i_n)
    largest, factor, greedy, sound = scale_of(p_peak, p_temperature, i_n, i_b, blocks, BLOCKS)
    border, equals = border_of(p_state, i_n, greedy)
    o_block = tl.arange(0, BLOCKS)
    o_part = i_n.to(tl.int64) * blocks + o_block
    equal_before = tl.sum(tl.load(p_equal + o_part, mask=o_block < i_v, other=0), 0)
    o_v = i_v * BLOCK + tl.arange(0, BLOCK)
    b_x = distances(logits_at(p_row, o_v, o_v < vocabulary), largest, factor, greedy)
    b_w = kept(b_x, weights_of(b_x), border, equals, floor_of(p_min_p, i_b), equal_before)
    return tl.where(sound, b_w, 0)


@triton.jit
def total_of(p_state, i_n):
    return tl.load(p_state + i_n.to(tl.int64) * STATE + TOTAL)


@triton.jit(do_not_specialize=["blocks"])
def lookup_kernel(
    rows, tree, p_peak, p_temperature, p_min_p, p_state, p_equal, p_drafts, p_target_weight, p_draft_weight,
    vocabulary, blocks,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, NODES: tl.constexpr, SAMPLED: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Each drafted token's weight for the target and the draft; 0 for one that is absent or drawn twice."""
    i_b, i_m = tl.program_id(0) // tree.nodes, tl.program_id(0) % tree.nodes
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    o_m = tl.arange(0, NODES)
    p_own = p_drafts + i_b.to(tl.int64) * tree.nodes
    token = tl.load(p_own + i_m).to(tl.int32)
    parent = tl.load(tree.parents + i_m)
    b_elder = tl.load(p_own + o_m, mask=o_m < i_m, other=-1).to(tl.int32)
    b_parent = tl.load(tree.parents + o_m, mask=o_m < i_m, other=-2)
    repeated = tl.sum(((b_parent == parent) & (b_elder == token)).to(tl.int32), 0) > 0
    target_weight = tl.full((), 0, tl.int64)
    draft_weight = tl.full((), 0, tl.int64)
    if (token >= 0) & (token < vocabulary) & (repeated == 0):
        i_v = token // BLOCK
        m_token = i_v * BLOCK + tl.arange(0, BLOCK) == token
        i_n = i_b * rows.target_each + parent + 1
        b_w = kept_block(
            rows, p_peak, p_temperature, p_min_p, p_state, p_equal, i_n, i_v, vocabulary, blocks, BLOCK,
            BLOCKS,
        )  # fmt: skip
        target_weight = tl.sum(tl.where(m_token, b_w, 0), 0)
        if SAMPLED:
            i_n = rows.target_rows + i_b * rows.draft_each + tl.load(tree.draft_rows + parent + 1)
            b_w = kept_block(
                rows, p_peak, p_temperature, p_min_p, p_state, p_equal, i_n, i_v, vocabulary, blocks, BLOCK,
                BLOCKS,
            )  # fmt: skip
            draft_weight = tl.sum(tl.where(m_token, b_w, 0), 0)
    tl.store(p_target_weight + tl.program_id(0), target_weight)
    tl.store(p_draft_weight + tl.program_id(0), draft_weight)


@triton.jit
def residual_block(
    rows, tree, p_peak, p_temperature, p_min_p, p_state, p_equal, p_drafts, p_draft_weight, p_residual_total,
    i_b, i_r, i_u, i_v, steps, vocabulary, blocks,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, SAMPLED: tl.constexpr,
):  # fmt: skip
    """What is left of target row ``i_u`` in a block after ``steps`` children were rejected, and before the
    last of them was. ``i_r`` is the parent's draft row, read only where there are steps.
    """
    i_n = i_b * rows.target_each + i_u
    b_left = kept_block(
        rows, p_peak, p_temperature, p_min_p, p_state, p_equal, i_n, i_v, vocabulary, blocks, BLOCK, BLOCKS
    )  # fmt: skip
    b_before = b_left
    if steps > 0:
        if SAMPLED:
            total = total_of(p_state, i_n)
            i_q = rows.target_rows + i_b * rows.draft_each + i_r
            draft_total = total_of(p_state, i_q)
            b_q = kept_block(
                rows, p_peak, p_temperature, p_min_p, p_state, p_equal, i_q, i_v, vocabulary, blocks, BLOCK,
                BLOCKS,
            )  # fmt: skip
            p_totals = p_residual_total + (i_b.to(tl.int64) * tree.draft_count + i_r) * tree.width
            for i_step in range(steps):
                i_m = tl.load(tree.children + i_r * tree.width + i_step)
                weight = tl.load(p_draft_weight + i_b.to(tl.int64) * tree.nodes + i_m)
                if weight > 0:
                    b_before = b_left
                    b_residual = probabilities(b_left, total) - probabilities(b_q, draft_total)
                    b_residual = tl.maximum(b_residual, 0)
                    if i_step == steps - 1:
                        b_left = b_residual
                    else:
                        residual_total = tl.load(p_totals + i_step)
                        b_left = tl.where(residual_total > 0, b_residual, b_left)
                        total = tl.where(residual_total > 0, residual_total, total)
                    # The token itself needs no zero in b_q: it was rejected, so it is below q and now 0.
                    draft_total -= weight
        else:
            o_v = i_v * BLOCK + tl.arange(0, BLOCK)
            p_own = p_drafts + i_b.to(tl.int64) * tree.nodes
            for i_step in range(steps):
                i_m = tl.load(tree.children + i_r * tree.width + i_step)
                b_before = b_left
                b_left = tl.where(o_v == tl.load(p_own + i_m).to(tl.int32), 0, b_left)
    return b_left, b_before


@triton.jit(do_not_specialize=["blocks", "i_step"])
def residual_kernel(
    rows, tree, p_peak, p_temperature, p_min_p, p_state, p_equal, p_drafts, p_draft_weight, p_residual_total,
    i_step, vocabulary, blocks,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Add up what is left of p once child ``i_step`` is rejected, for every parent with a younger one."""
    i_v = tl.program_id(0) % blocks
    i_r = tl.program_id(0) // blocks % tree.draft_count
    i_b = tl.program_id(0) // blocks // tree.draft_count
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    if tl.load(tree.children + i_r * tree.width + i_step + 1) >= 0:
        i_m = tl.load(tree.children + i_r * tree.width + i_step)
        if tl.load(p_draft_weight + i_b.to(tl.int64) * tree.nodes + i_m) > 0:
            b_left, _ = residual_block(
                rows, tree, p_peak, p_temperature, p_min_p, p_state, p_equal, p_drafts, p_draft_weight,
                p_residual_total, i_b, i_r, tl.load(tree.target_rows + i_r), i_v, i_step + 1, vocabulary,
                blocks, BLOCK, BLOCKS, True,
            )  # fmt: skip
            o_total = (i_b.to(tl.int64) * tree.draft_count + i_r) * tree.width + i_step
            tl.atomic_add(p_residual_total + o_total, tl.sum(b_left, 0), sem="relaxed")


@triton.jit
def accept_kernel(
    rows, tree, p_state, p_drafts, p_target_weight, p_draft_weight, p_residual_total, p_seed, p_position,
    p_walk, p_kept, p_count,
    NODES: tl.constexpr, DEPTH: tl.constexpr, SAMPLED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Test every node of a sequence and walk down. ``p_walk`` gets the last kept node's target row and how
    many of its children were rejected.
    """
    i_b = tl.program_id(0)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    o_m = tl.arange(0, NODES)
    m_m = o_m < tree.nodes
    o_own = i_b.to(tl.int64) * tree.nodes
    b_parent = tl.load(tree.parents + o_m, mask=m_m, other=-2)
    b_rank = tl.load(tree.ranks + o_m, mask=m_m, other=0)
    b_depth = tl.load(tree.depths + o_m, mask=m_m, other=0)
    b_row = tl.load(tree.draft_rows + b_parent + 1, mask=m_m, other=0)
    b_left = tl.load(p_target_weight + o_own + o_m, mask=m_m, other=0)
    b_q = tl.load(p_draft_weight + o_own + o_m, mask=m_m, other=0)
    o_state = (i_b * rows.target_each + b_parent + 1).to(tl.int64) * STATE + TOTAL
    b_total = tl.load(p_state + o_state, mask=m_m, other=0)
    m_tested = m_m & (tl.load(p_drafts + o_own + o_m, mask=m_m, other=-1) >= 0)
    if SAMPLED:
        m_tested = m_m & (b_q > 0)
        o_state = (rows.target_rows + i_b * rows.draft_each + b_row).to(tl.int64) * STATE + TOTAL
        b_draft_total = tl.load(p_state + o_state, mask=m_m, other=0)
        o_totals = (i_b.to(tl.int64) * tree.draft_count + b_row) * tree.width
    for i_step in range(tree.width - 1):  # elder siblings
        m_step = m_tested & (i_step < b_rank)
        b_child = tl.load(tree.children + b_row * tree.width + i_step, mask=m_step, other=0)
        if SAMPLED:
            b_weight = tl.load(p_draft_weight + o_own + b_child, mask=m_step, other=0)
            b_residual = probabilities(b_left, b_total) - probabilities(b_q, b_draft_total)
            b_residual = tl.maximum(b_residual, 0)
            b_residual_total = tl.load(p_residual_total + o_totals + i_step, mask=m_step, other=0)
            m_step = (b_weight > 0) & (b_residual_total > 0)
            b_left = tl.where(m_step, b_residual, b_left)
            b_total = tl.where(m_step, b_residual_total, b_total)
            b_draft_total -= b_weight
        else:
            b_total -= tl.load(p_target_weight + o_own + b_child, mask=m_step, other=0)
    b_chance = tl.full((NODES,), 1 << 62, tl.int64)
    if SAMPLED:
        b_chance = probabilities(b_q, b_draft_total)
    b_position = tl.load(p_position + i_b) + b_depth.to(tl.int64)
    b_drawn = share(random_word(tl.load(p_seed + i_b), b_position, ACCEPT, b_rank), b_chance)
    b_passes = m_tested & (b_drawn < probabilities(b_left, b_total))

    node = tl.full((), -1, tl.int32)
    count = tl.full((), 0, tl.int32)
    for i_depth in range(DEPTH):
        first = tl.min(tl.where(b_passes & (b_parent == node), o_m, NONE), 0)
        found = first < NONE
        tl.store(p_kept + i_b * DEPTH + i_depth, tl.where(found, first, -1).to(tl.int64))
        node = tl.where(found, first, node)
        count += found.to(tl.int32)
    tl.store(p_count + i_b, count)
    tl.store(p_walk + 2 * i_b, node + 1)
    tl.store(p_walk + 2 * i_b + 1, tl.max(tl.where(m_tested & (b_parent == node), b_rank + 1, 0), 0))


@triton.jit(do_not_specialize=["blocks"])
def next_kernel(
    rows, tree, p_peak, p_temperature, p_min_p, p_state, p_equal, p_drafts, p_draft_weight, p_residual_total,
    p_walk, p_count, p_sums, p_done, p_seed, p_position, p_next, vocabulary, blocks,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, SAMPLED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The token after the last one kept, from what its row's p has become. ``p_sums`` holds two sums a block:
    of that, and of what was before the last rejection, should rounding have left nothing.
    """
    i_b, i_v = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    i_u = tl.load(p_walk + 2 * i_b)
    steps = tl.load(p_walk + 2 * i_b + 1)
    i_r = tl.load(tree.draft_rows + i_u)
    b_left, b_before = residual_block(
        rows, tree, p_peak, p_temperature, p_min_p, p_state, p_equal, p_drafts, p_draft_weight,
        p_residual_total, i_b, i_r, i_u, i_v, steps, vocabulary, blocks, BLOCK, BLOCKS, SAMPLED,
    )  # fmt: skip
    p_own = p_sums + i_b.to(tl.int64) * 2 * blocks
    tl.store(p_own + i_v, tl.sum(b_left, 0))
    tl.store(p_own + blocks + i_v, tl.sum(b_before, 0))
    if arrives_last(p_done + i_b, blocks):
        o_block = tl.arange(0, BLOCKS)
        m_block = o_block < blocks
        b_sums = tl.load(p_own + o_block, mask=m_block, other=0, cache_modifier=".cg")
        exhausted = tl.sum(b_sums, 0) == 0
        if exhausted:
            b_sums = tl.load(p_own + blocks + o_block, mask=m_block, other=0, cache_modifier=".cg")
        total = tl.sum(b_sums, 0)
        token = tl.full((), -1, tl.int32)
        if total > 0:
            position = tl.load(p_position + i_b) + tl.load(p_count + i_b)
            word = random_word(tl.load(p_seed + i_b), position, TARGET, 0)
            place = share(word, total)
            i_block, before = located(b_sums, place)
            b_left, b_before = residual_block(
                rows, tree, p_peak, p_temperature, p_min_p, p_state, p_equal, p_drafts, p_draft_weight,
                p_residual_total, i_b, i_r, i_u, i_block, steps, vocabulary, blocks, BLOCK, BLOCKS, SAMPLED,
            )  # fmt: skip
            i_found, _ = located(tl.where(exhausted, b_before, b_left), place - before)
            token = i_block * BLOCK + i_found
        tl.store(p_next + i_b, token.to(tl.int64))
