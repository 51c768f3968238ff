"""The kernel: one tile of a skipped layer's key or value channels for one row tile of tokens a program.

The products are those of the skinny linear, the rotation that of the cache write, by the same device
functions. A tile takes pairs of channels that turn together, so that the rotation needs no other program.

Shapes: L skipped layers, N tokens, B batch, T query length, S cache slots, C model dim, K kv heads, D head
dim, R rotary pairs. Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from lit_eff.kernels.linear.arguments import Matrix, RowNorm
from lit_eff.kernels.linear.norm import statistics
from lit_eff.kernels.linear.tile import products
from lit_eff.kernels.rope.rotation import load_angles, pair_channels, turned
from lit_eff.kernels.rope.slots import find_slots, find_tokens


@triton.jit
def tile_pairs(i_o, o_place, HALF: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Head, pair within it, and existence of places ``o_place`` of tile ``i_o``, which takes HALF pairs."""
    ALL: tl.constexpr = KV_HEADS * HEAD_DIM // 2
    o_all = i_o * HALF + o_place
    m_pair = o_all < ALL
    o_all = tl.minimum(o_all, ALL - 1)
    return o_all // (HEAD_DIM // 2), o_all % (HEAD_DIM // 2), m_pair


@triton.jit
def store_pairs(cache, i_layer, b_block, b_place, o_head, o_first, o_second, b_first, b_second, m_store):
    """A tile (pairs, tokens) to the tokens' slots."""
    p_layer = cache.pointer + i_layer.to(tl.int64) * cache.stride_layer
    p_slot = p_layer + (b_block * cache.stride_b + b_place * cache.stride_s)[None, :]
    p_head = p_slot + (o_head.to(tl.int64) * cache.stride_h)[:, None]
    dtype: tl.constexpr = cache.pointer.dtype.element_ty
    tl.store(p_head + (o_first * cache.stride_d)[:, None], b_first.to(dtype), mask=m_store)
    tl.store(p_head + (o_second * cache.stride_d)[:, None], b_second.to(dtype), mask=m_store)


@triton.jit
def layer_tile(
    x, weight, scales, norm, p_bias, k_cache, v_cache, slots, angles,
    i_layer, i_o, is_value, o_n, o_b, b_slot, b_position, m_n, channels, stride_layer,
    ROWS: tl.constexpr, BLOCK_O: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr,
    CENTERED: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
):  # fmt: skip
    """Tile ``i_o`` of the keys or values of layer ``i_layer``, from the input's statistics to the store."""
    HALF: tl.constexpr = BLOCK_O // 2
    WIDTH: tl.constexpr = KV_HEADS * HEAD_DIM
    b_mean, b_rstd = None, None
    if CENTERED is not None:
        b_mean, b_rstd = statistics(x, norm.epsilon, o_n, m_n, channels, ROWS, CENTERED)
    o_both = tl.arange(0, BLOCK_O)
    o_head, o_pair, _ = tile_pairs(i_o, o_both % HALF, HALF, KV_HEADS, HEAD_DIM)
    o_first, o_second = pair_channels(o_pair, HEAD_DIM, PAIRS)
    o_weight = is_value * WIDTH + o_head * HEAD_DIM + tl.where(o_both < HALF, o_first, o_second)
    i_layer = i_layer.to(tl.int64)
    b_y = products(
        x,
        Matrix(weight.pointer + i_layer * stride_layer, weight.stride_row, weight.stride_column),
        scales,
        RowNorm(
            None if norm.gain is None else norm.gain + i_layer * channels,
            None if norm.shift is None else norm.shift + i_layer * channels,
            norm.epsilon,
        ),
        b_mean, b_rstd, o_n, m_n, o_weight, channels, ROWS, BLOCK_O, LANES, CHUNK, EVEN,
    )  # fmt: skip
    if p_bias is not None:
        b_y += tl.load(p_bias + i_layer * 2 * WIDTH + o_weight).to(tl.float32)[:, None]
    # As the skinny linear stores it and the cache write reads it.
    b_y = b_y.to(k_cache.pointer.dtype.element_ty).to(tl.float32)
    b_first, b_second = tl.split(tl.permute(tl.reshape(b_y, (2, HALF, ROWS)), (1, 2, 0)))

    o_head, o_pair, m_pair = tile_pairs(i_o, tl.arange(0, HALF), HALF, KV_HEADS, HEAD_DIM)
    o_first, o_second = pair_channels(o_pair, HEAD_DIM, PAIRS)
    b_block, b_place, m_n = find_slots(slots, o_b, b_slot, m_n, PAGE_SIZE)
    m_store = m_pair[:, None] & m_n[None, :]
    if is_value > 0:
        store_pairs(v_cache, i_layer, b_block, b_place, o_head, o_first, o_second, b_first, b_second, m_store)
    else:
        if PAIRS > 0:
            b_cos, b_sin = load_angles(angles, o_pair[:, None], b_position[None, :], m_store, PAIRS)
            m_turns = (o_pair < PAIRS)[:, None]
            b_first, b_second = turned(b_first, b_second, b_cos, b_sin, m_turns)
        store_pairs(k_cache, i_layer, b_block, b_place, o_head, o_first, o_second, b_first, b_second, m_store)


@triton.jit(do_not_specialize=["rows"])
def propagate_kernel(
    x, weight, scales, norm, p_bias, k_cache, v_cache, slots, angles, rows, channels, stride_layer,
    ROWS: tl.constexpr, BLOCK_O: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr,
    CENTERED: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr,
    PAGE_SIZE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        # The next launch may take its place on the multiprocessors, as this one did before it.
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    # Row tiles of one weight tile come together: they read the same weights.
    row_tiles = tl.cdiv(rows, ROWS)
    i_n = tl.program_id(0) % row_tiles
    i_tile = tl.program_id(0) // row_tiles
    TILES: tl.constexpr = (KV_HEADS * HEAD_DIM + BLOCK_O - 1) // BLOCK_O
    i_layer = i_tile // (2 * TILES)
    is_value = i_tile // TILES % 2
    o_n = i_n * ROWS + tl.arange(0, ROWS)
    o_b, o_t = o_n // slots.queries, o_n % slots.queries
    b_slot, b_position, m_n = find_tokens(slots, angles, o_b, o_t, o_n < rows)
    # Without a token that left here, nothing is read: exits are decided on the device.
    if tl.sum(m_n.to(tl.int32), 0) > 0:
        layer_tile(
            x, weight, scales, norm, p_bias, k_cache, v_cache, slots, angles,
            i_layer, i_tile % TILES, is_value, o_n, o_b, b_slot, b_position, m_n, channels, stride_layer,
            ROWS, BLOCK_O, LANES, CHUNK, EVEN, CENTERED, KV_HEADS, HEAD_DIM, PAIRS, PAGE_SIZE,
        )  # fmt: skip
