"""Bytes that the kernels on a cache request, counted in the interpreter, equal the model to the byte."""

from __future__ import annotations

import pytest
import torch

from lit_eff.kernels.attention.with_cache import attention_with_cache
from lit_eff.kernels.attention.with_cache.io_model import CacheShape, cache_bytes, cache_traffic
from lit_eff.kernels.attention.with_cache.tiles import CacheTiles, Deal, Unit, deal
from lit_eff.profiling.counted import KernelCount, count_traffic
from tests.kernels.cache_cases import SMALL, CacheCase, small_tiles

DEALS = [Deal(Unit.CHUNK, 3, 2), Deal(Unit.SEGMENT, 2, 2), Deal(Unit.ROW, 2, 1)]
FORMS = [
    CacheCase(),
    CacheCase(queries=9, heads=4, features={"ragged": True, "sinks": True, "window": 20}),
    CacheCase(kv_heads=2, features={"paged": 8, "tree": True, "alibi": True}),
    CacheCase(features={"paged": 16, "window": 40}),
]


def requested(count: KernelCount, kind: str) -> dict[str, int]:
    sizes = {name: getattr(each, kind).requested_bytes for name, each in count.tensors.items()}
    return {name: size for name, size in sizes.items() if size}


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("share", DEALS, ids=lambda share: share.unit.value)
@pytest.mark.parametrize("case", FORMS, ids=str)
def test_counts_are_as_modelled(case: CacheCase, share: Deal) -> None:
    arguments = case.draw(torch.float32)
    counts = arguments.get("query_lengths_B")
    if counts is not None:
        arguments["query_lengths_B"] = counts.long()
    shape = CacheShape(
        case.queries,
        case.heads,
        case.kv_heads,
        case.head_dim,
        tuple(arguments["lengths_B"].tolist()),
        case.capacity,
        element_bytes=4,
        query_lengths=None if counts is None else tuple(counts.tolist()),
        page_size=case.features.get("paged", 0),
        **{name: bool(case.features.get(name)) for name in ("tree", "sinks", "alibi")},
        window=case.features.get("window"),
    )
    with small_tiles(share), count_traffic() as launches:
        attention_with_cache(**arguments)
    for count, modelled in zip(launches, cache_traffic(shape, SMALL, share), strict=True):
        assert requested(count, "loads") == modelled.reads
        assert requested(count, "stores") == modelled.writes
        assert count.atomic_bytes == 0


def test_keys_and_values_are_read_once() -> None:
    """Thirty-two query heads on eight kv heads, eight queries: one row tile, so the cache is read once."""
    shape = CacheShape(8, 32, 8, 128, (8184,) * 16, 8192)
    tiles = CacheTiles(64, 64, 256, 4096, 4, 3)
    (split, combine) = cache_traffic(shape, tiles, Deal(Unit.SEGMENT, 2, 2))
    assert split.reads["k"] + split.reads["v"] == cache_bytes(shape) == 16 * 8192 * 8 * 128 * 2 * 2
    assert split.written_bytes + combine.read_bytes < 0.02 * cache_bytes(shape)


@pytest.mark.parametrize(
    ("slots", "row_tiles", "unit"),
    [
        (8192, 8, Unit.CHUNK),
        (65536, 8, Unit.SEGMENT),
        (4096, 512, Unit.ROW),
        (65536, 2048, Unit.ROW),
        (200, 8, Unit.ROW),
    ],
)
def test_deal(slots: int, row_tiles: int, unit: Unit) -> None:
    share = deal(CacheTiles(64, 64, 256, 4096, 4, 3), slots, row_tiles, 132)
    assert share.unit is unit
    assert 1 <= share.runs <= share.parts
