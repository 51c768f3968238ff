"""The traffic formulas against the papers' figures, brute force and each other."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_eff.kernels.attention import visible_keys
from lit_eff.kernels.attention.io_model import (
    AttentionShape,
    backward_flops,
    flash1_backward,
    flash1_blocks,
    flash1_forward,
    flash2_backward,
    flash2_forward,
    forward_flops,
    standard_backward,
    standard_forward,
)
from lit_eff.kernels.attention.tiles import Tiles
from lit_eff.kernels.attention.traffic_model import forward_traffic, key_range, query_range

N, D = 1024, 64
SQUARE = AttentionShape(batch=1, queries=N, keys=N, heads=1, kv_heads=1, head_dim=D)


def test_standard_attention_is_the_papers() -> None:
    """4 N^2 + 4 N d elements forward, 11 N^2 + 12 N d with the backward (Algorithms 0 and 3)."""
    forward, backward = standard_forward(SQUARE).total, standard_backward(SQUARE).total
    assert forward == 2 * (4 * N * N + 4 * N * D)
    assert forward + backward == 2 * (11 * N * N + 12 * N * D)


def test_flash1_is_its_algorithm_run_block_by_block() -> None:
    sram = 32_768
    block_q, block_k = flash1_blocks(D, sram)
    assert (block_q, block_k) == (64, 128)
    reads = writes = 0
    writes += N * D * 2 + 2 * N * 4  # line 2: O, l, m
    for _ in range(0, N, block_k):
        reads += 2 * block_k * D * 2
        for _ in range(0, N, block_q):
            reads += 2 * block_q * D * 2 + 2 * block_q * 4
            writes += block_q * D * 2 + 2 * block_q * 4
    traffic = flash1_forward(SQUARE, sram)
    assert (traffic.read_bytes, traffic.written_bytes) == (reads, writes)


def test_flash1_falls_as_one_over_the_sram() -> None:
    """Theta(N^2 d^2 / M), Theorem 2: four times the memory, a quarter of the traffic but for terms in N d."""
    for traffic in (flash1_forward, flash1_backward):
        small, large = traffic(SQUARE, 4 * D * 16).total, traffic(SQUARE, 4 * D * 64).total
        assert 3.5 < small / large < 4.0
    assert flash1_forward(SQUARE, 4 * D * 128).total < standard_forward(SQUARE).total


def test_flash2_formula() -> None:
    """Per head: Q and O once, K and V once a Q block, the log-sum-exp in float32."""
    block = 128
    expected = 2 * N * D + 2 * (2 * ceil(N / block) * N * D) + 2 * N * D + 4 * N
    assert flash2_forward(SQUARE, block, 64).total == expected
    causal = AttentionShape(1, N, N, 1, 1, D, causal=True)
    saved = flash2_forward(SQUARE, block, 64).reads["k"] / flash2_forward(causal, block, 64).reads["k"]
    assert saved == pytest.approx(2 / (1 + block / N))
    assert flash2_backward(SQUARE, block, 128).reads["q"] == 2 * 8 * N * D


def test_flops() -> None:
    assert forward_flops(SQUARE) == 4 * N * N * D
    assert backward_flops(SQUARE) == 10 * N * N * D
    assert forward_flops(AttentionShape(2, N, N, 4, 2, D, causal=True)) == 8 * 4 * D * N * (N + 1) // 2


SHAPES = st.builds(
    AttentionShape,
    batch=st.integers(1, 2),
    queries=st.integers(1, 40),
    keys=st.integers(1, 40),
    heads=st.just(2),
    kv_heads=st.just(1),
    head_dim=st.just(16),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 50),
)
TILES = st.builds(
    Tiles,
    block_m=st.sampled_from([4, 8]),
    block_n=st.sampled_from([2, 8]),
    num_warps=st.just(4),
    num_stages=st.just(1),
)


IDS = st.lists(st.integers(-1, 3), min_size=40, max_size=40)


def visited(
    shape: AttentionShape, tiles: Tiles
) -> tuple[set[tuple[int, int, bool]], set[tuple[int, int, bool]]]:
    """(first query, first key, masked) of the tiles that the kernels owning queries, or keys, visit."""
    by_query = {
        (first, n, masked)
        for first in range(0, shape.queries, tiles.block_m)
        for n, masked in key_range(shape, tiles, first, 0).blocks(tiles.block_n)
    }
    by_key = {
        (m, first, masked)
        for first in range(0, shape.keys, tiles.block_n)
        for m, masked in query_range(shape, tiles, first, 0).blocks(tiles.block_m)
    }
    return by_query, by_key


def seen(shape: AttentionShape) -> np.ndarray:
    """(T, S): which keys each query of the first batch row sees."""
    ids = {}
    if shape.documents is not None and shape.key_documents is not None:
        ids["documents_BT"] = torch.tensor(shape.documents[:1])
        ids["key_documents_BS"] = torch.tensor(shape.key_documents[:1])
    mask = visible_keys(shape.queries, shape.keys, causal=shape.causal, window=shape.window, **ids)
    return np.ones((shape.queries, shape.keys), bool) if mask is None else mask[0].numpy()


def needed(shape: AttentionShape, tiles: Tiles) -> set[tuple[int, int]]:
    tile = np.array([tiles.block_m, tiles.block_n])
    return set(map(tuple, (np.argwhere(seen(shape)) // tile * tile).tolist()))


@given(SHAPES, TILES)
def test_kernel_loops_visit_exactly_the_blocks_that_are_seen(shape: AttentionShape, tiles: Tiles) -> None:
    """A pair of blocks is visited if and only if some query of the one sees some key of the other."""
    for tiles_visited in visited(shape, tiles):
        assert {(m, n) for m, n, _ in tiles_visited} == needed(shape, tiles)
    assert shape.visible_pairs() == seen(shape).sum() * shape.batch * shape.heads


@given(SHAPES, TILES, st.none() | IDS, st.booleans())
def test_blocks_without_masks_are_seen_whole(
    shape: AttentionShape, tiles: Tiles, ids: list[int] | None, ordered: bool
) -> None:
    """Also with documents, whatever the order of their ids; and no block that is seen is left out."""
    if ids is not None:
        ids = sorted(ids, key=lambda i: i % 2**32) if ordered else ids
        rows = {"documents": ids[: shape.queries], "key_documents": ids[-shape.keys :]}
        shape = replace(shape, **{name: (tuple(row),) * shape.batch for name, row in rows.items()})
    mask = seen(shape)
    assert shape.visible_pairs() == mask.sum() * shape.batch * shape.heads
    for tiles_visited in visited(shape, tiles):
        assert {(m, n) for m, n, _ in tiles_visited} >= needed(shape, tiles)
        for m, n, masked in tiles_visited:
            assert masked or mask[m : m + tiles.block_m, n : n + tiles.block_n].all()


def test_ordered_documents_are_skipped_between() -> None:
    """Four documents of four blocks each: every tile visits its own document only, and masks nothing."""
    ids = (tuple(i // 32 for i in range(128)),)
    shape = AttentionShape(1, 128, 128, 1, 1, 16, documents=ids, key_documents=ids)
    for tiles_visited in visited(shape, Tiles(8, 8, 4, 1)):
        assert len(tiles_visited) == 4 * 4 * 4
        assert not any(masked for _, _, masked in tiles_visited)


@given(SHAPES, TILES)
def test_exact_model_is_flash2s_by_whole_blocks(shape: AttentionShape, tiles: Tiles) -> None:
    assert forward_traffic(shape, tiles) == flash2_forward(shape, tiles.block_m, tiles.block_n)
