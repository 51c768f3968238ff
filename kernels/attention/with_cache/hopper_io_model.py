"""The bytes that the Hopper split kernel requests from HBM, item by item: pure arithmetic.

There is no interpreter to count it in. It differs from the portable kernel in whole tiles of slots, seen or
not, which the copy engine moves as far as the cache reaches; in lengths and slopes, which both partitions
ask for anew with every item; and in tree flags, of which a step loads its own. Tensor names are the kernel's
arguments without ``p_`` and ``d_``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lit_eff.kernels.attention.with_cache.io_model import (
    CacheShape,
    all_heads,
    combine_traffic,
    count_finish,
    count_partials,
    unit_slots,
    units_of,
)
from lit_eff.kernels.attention.with_cache.sectors import (
    cache_sectors,
    index_sectors,
    page_entries,
    row_tiles,
)
from lit_eff.kernels.attention.with_cache.tiles import CacheTiles, Deal, Unit
from lit_eff.profiling.modelled import STATISTIC_BYTES, Traffic, sector_bytes

ITEM_INDICES = 3  # times that an item's length is asked for: loading warp, computing warps, their rows


@dataclass(frozen=True)
class Item:
    """A row tile of one kv head with its run of units, and the slots of the tiles it loads."""

    own: range  # rows that have a query
    units: range
    steps: range  # first slots
    stop: int  # of the slots that the tile's rows see


def hopper_items(
    shape: CacheShape, tiles: CacheTiles, share: Deal, b: int, own: range, slots: range
) -> list[Item]:
    """The items of one row tile, as `hopper_items.item_of` deals them; some may have no units."""
    units, size = units_of(slots, tiles, share), unit_slots(tiles, share)
    runs = 1 if share.unit is Unit.ROW else share.runs
    each = -(-len(units) // runs)
    items = []
    for i_run in range(runs):
        taken = units[i_run * each : (i_run + 1) * each]
        begin = end = 0
        if taken:
            begin = max(taken[0] * size, slots.start // tiles.block_n * tiles.block_n)
            end = min((taken[-1] + 1) * size, slots.stop)
        items.append(Item(own, taken, range(begin, end, tiles.block_n), slots.stop))
    return items


def hopper_cache_traffic(shape: CacheShape, tiles: CacheTiles, share: Deal) -> list[Traffic]:
    """Requests of each launch: the Hopper split kernel's, then the combine kernel's unless items own rows."""
    reads: Counter[str] = Counter()
    writes: Counter[str] = Counter()
    for b, own, slots in row_tiles(shape, tiles):
        tile_rows = min(tiles.rows, shape.rows - own.start)
        for item in hopper_items(shape, tiles, share, b, own, slots):
            _item_reads(reads, shape, tiles, b, item, tile_rows)
            if share.unit is not Unit.ROW:
                count_partials(writes, shape, len(item.units) * len(own))
            elif share.parts > 1:  # what an item carries from segment to segment
                for count in (reads, writes):
                    count_partials(count, shape, max(len(item.units) - 1, 0) * len(own))
            if share.unit is Unit.ROW:
                count_finish(reads, writes, shape, tile_rows, len(own))
    split = all_heads(reads, writes, shape.kv_heads)
    return [split] if share.unit is Unit.ROW else [split, combine_traffic(shape, tiles, share)]


def _item_reads(
    reads: Counter[str], shape: CacheShape, tiles: CacheTiles, b: int, item: Item, tile_rows: int
) -> None:
    reads["lengths"] += ITEM_INDICES * shape.length_bytes
    if shape.query_lengths is not None:
        reads["query_lengths"] += ITEM_INDICES * shape.length_bytes
    if shape.alibi:
        reads["alibi"] += len(item.own) * STATISTIC_BYTES
    if item.steps:
        reads["q"] += tile_rows * shape.row_bytes
    for name in ("k", "v"):
        reads[name] += sum(_copied(shape, tiles, slot) for slot in item.steps) * shape.row_bytes
    if shape.page_size and item.steps:
        places = [item.steps[0], *(slot + tiles.block_n for slot in item.steps)]
        copies = min(shape.page_size, tiles.block_n)
        asked = (sum(slot + i < item.stop for i in range(0, tiles.block_n, copies)) for slot in places)
        reads["page_table"] += sum(asked) * shape.page_bytes
    if shape.tree:
        length = shape.lengths[b]
        own_slots = (
            min(slot + tiles.block_n, length + shape.queries) - max(slot, length) for slot in item.steps
        )
        reads["tree"] += len(item.own) * sum(max(slots, 0) for slots in own_slots)


def _copied(shape: CacheShape, tiles: CacheTiles, slot: int) -> int:
    """Slots that exist of the tile from ``slot``: in pages all, the first page for those past the end."""
    return tiles.block_n if shape.page_size else min(tiles.block_n, shape.capacity - slot)


def hopper_split_sectors(shape: CacheShape, tiles: CacheTiles, share: Deal) -> int:
    """Distinct sectors that HBM must yield: without what the kernel writes and reads again."""
    step = min(shape.page_size or tiles.block_n, tiles.block_n)
    copied: list[tuple[int, range]] = []
    queries: list[tuple[int, int]] = []
    table: list[tuple[int, int]] = []
    for b, own, slots in row_tiles(shape, tiles):
        if slots:
            begin = slots.start // tiles.block_n * tiles.block_n
            copied.append((b, range(begin, min(-(-slots.stop // step) * step, shape.capacity))))
            rows = range(own.start, min(own.start + tiles.rows, shape.rows))
            for i_kv in range(shape.kv_heads):
                for r in rows:
                    t, g = divmod(r, shape.group)
                    place = (b * shape.queries + t) * shape.heads + i_kv * shape.group + g
                    queries.append((place * shape.row_bytes, (place + 1) * shape.row_bytes))
            if shape.page_size:
                first, last = page_entries(shape, b, begin, slots.stop)
                table.append((first * shape.page_bytes, last * shape.page_bytes))
    cache = cache_sectors(shape, copied)
    assert cache is not None  # rows of 128 or 256 bytes
    return cache + sector_bytes(queries) + sector_bytes(table) + index_sectors(shape)
