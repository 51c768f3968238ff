"""The kernel: a tile of one token's heads a program, of its queries, then its keys, then its values.

Shapes: B batch, T query length, S cache slots, H query heads, K kv heads, D head dim, R rotary pairs.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from lit_eff.kernels.rope.rotation import load_angles, pair_channels, reciprocal_rms, turned
from lit_eff.kernels.rope.slots import find_slots, find_tokens


@triton.jit
def move_heads(
    p_from, from_h, from_d, p_to, to_h, to_d, p_gain, epsilon, angles, i_position, i_tile, m_token, m_store,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_P: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """Tile ``i_tile`` of a token's heads from ``p_from`` to ``p_to``, maybe the same place: RMSNorm over each
    head if there is a gain, rotation if there are PAIRS, all in float32. Zeros, if anything, of what is no
    token. ``from_h`` and so on are strides of heads and channels.
    """
    o_h = i_tile * BLOCK_H + tl.arange(0, BLOCK_H)
    o_pair = tl.arange(0, BLOCK_P)
    m_channel = o_pair < HEAD_DIM // 2
    m_pair = (o_h < HEADS)[:, None] & m_channel[None, :]
    o_first, o_second = pair_channels(o_pair, HEAD_DIM, PAIRS)
    p_head = p_from + o_h.to(tl.int64)[:, None] * from_h
    m_load = m_pair & m_token
    b_first = tl.load(p_head + o_first[None, :] * from_d, mask=m_load, other=0.0).to(tl.float32)
    b_second = tl.load(p_head + o_second[None, :] * from_d, mask=m_load, other=0.0).to(tl.float32)
    if p_gain is not None:
        b_rstd = reciprocal_rms(b_first, b_second, epsilon, HEAD_DIM, LEVELS)
        b_rstd = tl.where(m_token, b_rstd, 0.0)  # that of zeros may be infinite
        b_first *= b_rstd * tl.load(p_gain + o_first, mask=m_channel, other=0.0).to(tl.float32)[None, :]
        b_second *= b_rstd * tl.load(p_gain + o_second, mask=m_channel, other=0.0).to(tl.float32)[None, :]
    if PAIRS > 0:
        b_cos, b_sin = load_angles(angles, o_pair, i_position, m_token, PAIRS)
        m_turns = (o_pair < PAIRS)[None, :]
        b_first, b_second = turned(b_first, b_second, b_cos[None, :], b_sin[None, :], m_turns)
    dtype: tl.constexpr = p_to.dtype.element_ty
    p_head = p_to + o_h.to(tl.int64)[:, None] * to_h
    tl.store(p_head + o_first[None, :] * to_d, b_first.to(dtype), mask=m_pair & m_store)
    tl.store(p_head + o_second[None, :] * to_d, b_second.to(dtype), mask=m_pair & m_store)


@triton.jit
def of_token(heads, i_b, i_t):
    return heads.pointer + i_b.to(tl.int64) * heads.stride_b + i_t.to(tl.int64) * heads.stride_t


@triton.jit
def rope_cache_write_kernel(
    q, k, v, out, k_cache, v_cache, slots, angles, p_q_gain, p_k_gain, epsilon,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_P: tl.constexpr, LEVELS: tl.constexpr, PAGE_SIZE: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        # The next launch may take its place on the multiprocessors, as this one did before it.
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    Q_TILES: tl.constexpr = (HEADS + BLOCK_H - 1) // BLOCK_H
    KV_TILES: tl.constexpr = (KV_HEADS + BLOCK_H - 1) // BLOCK_H
    i_tile = tl.program_id(0) % (Q_TILES + 2 * KV_TILES)
    i_token = tl.program_id(0) // (Q_TILES + 2 * KV_TILES)
    i_b, i_t = i_token // slots.queries, i_token % slots.queries
    i_slot, i_position, m_token = find_tokens(slots, angles, i_b, i_t, True)
    if i_tile < Q_TILES:
        move_heads(
            of_token(q, i_b, i_t), q.stride_h, q.stride_d,
            of_token(out, i_b, i_t), out.stride_h, out.stride_d,
            p_q_gain, epsilon, angles, i_position, i_tile, m_token, True,
            HEADS, HEAD_DIM, PAIRS, BLOCK_H, BLOCK_P, LEVELS,
        )  # fmt: skip
    else:
        i_block, i_place, m_slot = find_slots(slots, i_b, i_slot, m_token, PAGE_SIZE)
        if i_tile < Q_TILES + KV_TILES:
            p_k = k_cache.pointer + i_block * k_cache.stride_b + i_place * k_cache.stride_s
            move_heads(
                of_token(k, i_b, i_t), k.stride_h, k.stride_d, p_k, k_cache.stride_h, k_cache.stride_d,
                p_k_gain, epsilon, angles, i_position, i_tile - Q_TILES, m_slot, m_slot,
                KV_HEADS, HEAD_DIM, PAIRS, BLOCK_H, BLOCK_P, LEVELS,
            )  # fmt: skip
        else:
            p_v = v_cache.pointer + i_block * v_cache.stride_b + i_place * v_cache.stride_s
            move_heads(
                of_token(v, i_b, i_t), v.stride_h, v.stride_d, p_v, v_cache.stride_h, v_cache.stride_d,
                None, epsilon, angles, i_position, i_tile - Q_TILES - KV_TILES, m_slot, m_slot,
                KV_HEADS, HEAD_DIM, 0, BLOCK_H, BLOCK_P, LEVELS,
            )  # fmt: skip
