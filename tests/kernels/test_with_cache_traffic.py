"""What attention on a cache requests in use: keys and values once, and the deal of the work."""

from __future__ import annotations

import pytest

from lit_eff.kernels.attention.with_cache.io_model import CacheShape, cache_bytes, cache_traffic
from lit_eff.kernels.attention.with_cache.tiles import CacheTiles, Deal, Unit, deal


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
