"""Keys normalised head by head and turned where they lie in the cache, after the launch that wrote them.

A norm over a head needs all of the head's channels, which no program of the products has: tiles as wide as a
head spill. What is written first is rounded as it would be between two kernels anyway.

Shapes: L skipped layers, N tokens, S cache slots, K kv heads, D head dim, R rotary pairs.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from lit_eff.kernels.rope.kernel import move_heads
from lit_eff.kernels.rope.slots import find_slots, find_tokens


@triton.jit(do_not_specialize=["rows"])
def cached_keys_kernel(
    k_cache, slots, angles, p_gain, epsilon, rows,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_P: tl.constexpr, LEVELS: tl.constexpr, PAGE_SIZE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A tile of one token's key heads in one layer a program."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    TILES: tl.constexpr = (KV_HEADS + BLOCK_H - 1) // BLOCK_H
    i_tile = tl.program_id(0) % TILES
    i_n = tl.program_id(0) // TILES % rows
    i_layer = (tl.program_id(0) // TILES // rows).to(tl.int64)
    i_b, i_t = i_n // slots.queries, i_n % slots.queries
    i_slot, i_position, m_token = find_tokens(slots, angles, i_b, i_t, True)
    i_block, i_place, m_slot = find_slots(slots, i_b, i_slot, m_token, PAGE_SIZE)
    p_slot = k_cache.pointer + i_layer * k_cache.stride_layer
    p_slot += i_block * k_cache.stride_b + i_place * k_cache.stride_s
    move_heads(
        p_slot, k_cache.stride_h, k_cache.stride_d, p_slot, k_cache.stride_h, k_cache.stride_d,
        p_gain + i_layer * HEAD_DIM, epsilon, angles, i_position, i_tile, m_slot, m_slot,
        KV_HEADS, HEAD_DIM, PAIRS, BLOCK_H, BLOCK_P, LEVELS,
    )  # fmt: skip
