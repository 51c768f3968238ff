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
def load_pairs(heads, i_b, i_t, o_h, o_first, o_second, m_pair):
    """First and second channels of a token's heads, (BLOCK_H, BLOCK_P), as stored."""
    p_token = heads.pointer + i_b.to(tl.int64) * heads.stride_b + i_t.to(tl.int64) * heads.stride_t
    p_head = p_token + o_h.to(tl.int64)[:, None] * heads.stride_h
    b_first = tl.load(p_head + o_first[None, :] * heads.stride_d, mask=m_pair, other=0.0)
    b_second = tl.load(p_head + o_second[None, :] * heads.stride_d, mask=m_pair, other=0.0)
    return b_first, b_second


@triton.jit
def store_pairs(p_token, b_first, b_second, o_h, o_first, o_second, m_pair, stride_h, stride_d):
    p_head = p_token + o_h.to(tl.int64)[:, None] * stride_h
    dtype: tl.constexpr = p_token.dtype.element_ty
    tl.store(p_head + o_first[None, :] * stride_d, b_first.to(dtype), mask=m_pair)
    tl.store(p_head + o_second[None, :] * stride_d, b_second.to(dtype), mask=m_pair)


@triton.jit
def normed_and_turned(
    b_first, b_second, p_gain, epsilon, angles, i_position, m_token, o_pair, o_first, o_second, m_channel,
    HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """A tile of heads in float32: RMSNorm over each head, if there is a gain, then the rotation."""
    b_first, b_second = b_first.to(tl.float32), b_second.to(tl.float32)
    if p_gain is not None:
        b_rstd = reciprocal_rms(b_first, b_second, epsilon, HEAD_DIM, LEVELS)
        b_first *= b_rstd * tl.load(p_gain + o_first, mask=m_channel, other=0.0).to(tl.float32)[None, :]
        b_second *= b_rstd * tl.load(p_gain + o_second, mask=m_channel, other=0.0).to(tl.float32)[None, :]
    if PAIRS > 0:
        b_cos, b_sin = load_angles(angles, o_pair, i_position, m_token, PAIRS)
        m_turns = (o_pair < PAIRS)[None, :]
        b_first, b_second = turned(b_first, b_second, b_cos[None, :], b_sin[None, :], m_turns)
    return b_first, b_second


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

    o_pair = tl.arange(0, BLOCK_P)
    m_channel = o_pair < HEAD_DIM // 2
    o_first, o_second = pair_channels(o_pair, HEAD_DIM, PAIRS)
    if i_tile < Q_TILES:
        o_h = i_tile * BLOCK_H + tl.arange(0, BLOCK_H)
        m_pair = (o_h < HEADS)[:, None] & m_channel[None, :]
        b_first, b_second = load_pairs(q, i_b, i_t, o_h, o_first, o_second, m_pair & m_token)
        b_first, b_second = normed_and_turned(
            b_first, b_second, p_q_gain, epsilon, angles, i_position, m_token, o_pair, o_first, o_second,
            m_channel, HEAD_DIM, PAIRS, LEVELS,
        )  # fmt: skip
        # Zeros for a query that is none: with an epsilon of 0 its norm made NaNs.
        b_first, b_second = tl.where(m_token, b_first, 0.0), tl.where(m_token, b_second, 0.0)
        p_out = out.pointer + i_b.to(tl.int64) * out.stride_b + i_t.to(tl.int64) * out.stride_t
        store_pairs(p_out, b_first, b_second, o_h, o_first, o_second, m_pair, out.stride_h, out.stride_d)
    else:
        i_block, i_place, m_token = find_slots(slots, i_b, i_slot, m_token, PAGE_SIZE)
        o_h = (i_tile - Q_TILES) % KV_TILES * BLOCK_H + tl.arange(0, BLOCK_H)
        m_pair = (o_h < KV_HEADS)[:, None] & m_channel[None, :] & m_token
        if i_tile < Q_TILES + KV_TILES:
            b_first, b_second = load_pairs(k, i_b, i_t, o_h, o_first, o_second, m_pair)
            b_first, b_second = normed_and_turned(
                b_first, b_second, p_k_gain, epsilon, angles, i_position, m_token, o_pair, o_first, o_second,
                m_channel, HEAD_DIM, PAIRS, LEVELS,
            )  # fmt: skip
            p_slot = k_cache.pointer + i_block * k_cache.stride_b + i_place * k_cache.stride_s
            store_pairs(
                p_slot, b_first, b_second, o_h, o_first, o_second, m_pair, k_cache.stride_h, k_cache.stride_d
            )
        else:
            b_first, b_second = load_pairs(v, i_b, i_t, o_h, o_first, o_second, m_pair)
            p_slot = v_cache.pointer + i_block * v_cache.stride_b + i_place * v_cache.stride_s
            store_pairs(
                p_slot, b_first, b_second, o_h, o_first, o_second, m_pair, v_cache.stride_h, v_cache.stride_d
            )
