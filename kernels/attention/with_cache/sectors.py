"""The distinct 32-byte sectors that attention on a cache reads: the least that a cold L2 cache leaves to HBM.

Pure arithmetic over the same loops as `io_model`. Tensors are contiguous; the cache has as many slots as
the capacity says, in pages that no two rows share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lit_eff.kernels.attention.with_cache.io_model import CacheShape, steps_of, units_of
from lit_eff.kernels.attention.with_cache.tiles import CacheTiles, Deal, Unit
from lit_eff.profiling.modelled import SECTOR_BYTES, STATISTIC_BYTES, sector_bytes, whole_sectors

Ranges = Iterable[tuple[int, int]]


def split_sectors(shape: CacheShape, tiles: CacheTiles, share: Deal) -> int | None:
    """Of `cache_split_kernel`; None for pages of rows that fill no whole sectors.

    What programs that own whole rows write and read again is among them.
    """
    cache = cache_sectors(shape, [(b, shape.seen_slots(0, shape.rows, b)) for b in range(len(shape.lengths))])
    if cache is None:
        return None
    batch, whole = len(shape.lengths), share.unit is Unit.ROW
    seen: list[tuple[int, range]] = []  # batch row and tile rows with a query
    alibi: set[int] = set()
    tree: list[tuple[int, int]] = []
    table: list[tuple[int, int]] = []
    carried: list[tuple[int, int]] = []
    for b, own, slots in row_tiles(shape, tiles):
        units = units_of(slots, tiles, share)
        seen.append((b, own))
        if units:
            alibi.update(r % shape.group for r in own)
            if shape.page_size:
                table.append(page_entries(shape, b, slots.start // tiles.block_n * tiles.block_n, slots.stop))
            if shape.tree and steps_of(slots, tiles, share, units[-1])[-1] + tiles.block_n > shape.lengths[b]:
                tree.append(tree_flags(shape, b, own))
        if whole and share.parts > 1 and len(units) > 1:
            places = ((b * shape.kv_heads + i_kv) * shape.rows for i_kv in range(shape.kv_heads))
            carried += [(place + own.start, place + own.stop) for place in places]
    queries = whole_sectors(batch * shape.queries * shape.heads * shape.row_bytes)
    total = cache + queries + index_sectors(shape) + sector_bytes(tree)
    total += _scaled(table, shape.page_bytes) + _partials(shape, carried)
    if shape.alibi:
        total += _heads(shape, alibi)
    if shape.sinks and whole:
        total += _heads(shape, {r % shape.group for _, own in seen for r in own})
    return total


def combine_sectors(shape: CacheShape, tiles: CacheTiles, share: Deal) -> int:
    """Of `cache_combine_kernel`."""
    rows: list[tuple[int, int]] = []
    seen: set[int] = set()
    for b in range(len(shape.lengths)):
        for r in range(shape.rows):
            units = units_of(shape.seen_slots(r, 1, b), tiles, share)
            for i_kv in range(shape.kv_heads):
                first = (b * shape.kv_heads + i_kv) * share.parts
                rows += [
                    ((first + unit) * shape.rows + r, (first + unit) * shape.rows + r + 1) for unit in units
                ]
            if shape.is_there(r, b):
                seen.add(r % shape.group)
    sinks = _heads(shape, seen) if shape.sinks else 0
    return index_sectors(shape) + _partials(shape, rows) + sinks


def row_tiles(shape: CacheShape, tiles: CacheTiles) -> Iterator[tuple[int, range, range]]:
    """Batch row, tile rows that have a query, and slots that these see, of each row tile."""
    for b in range(len(shape.lengths)):
        for first in range(0, shape.rows, tiles.rows):
            own = range(first, min(first + tiles.rows, shape.counts()[b] * shape.group))
            yield b, own, shape.seen_slots(first, tiles.rows, b)


def cache_sectors(shape: CacheShape, slots: Iterable[tuple[int, range]]) -> int | None:
    """Of the keys and values in ``slots`` of each batch row."""
    width = shape.kv_heads * shape.row_bytes
    ranges = [(b * shape.capacity + each.start, b * shape.capacity + each.stop) for b, each in slots if each]
    if shape.page_size and width % SECTOR_BYTES:
        return None  # it would depend on where the pages lie
    return 2 * _scaled(ranges, width)


def index_sectors(shape: CacheShape) -> int:
    """Of the lengths."""
    size = len(shape.lengths) * shape.length_bytes
    return whole_sectors(size, 0 if shape.query_lengths is None else size)


def page_entries(shape: CacheShape, b: int, start: int, stop: int) -> tuple[int, int]:
    """Entries of the page table for the slots [start, stop) of a batch row."""
    first = b * (shape.capacity // shape.page_size)
    return first + start // shape.page_size, first + -(-stop // shape.page_size)


def tree_flags(shape: CacheShape, b: int, own: range) -> tuple[int, int]:
    """Bytes of the tree mask that hold the queries of ``own`` rows."""
    first = b * shape.queries
    t_start, t_stop = own.start // shape.group, -(-own.stop // shape.group)
    return (first + t_start) * shape.queries, (first + t_stop) * shape.queries


def _scaled(ranges: Ranges, size: int) -> int:
    return sector_bytes((start * size, stop * size) for start, stop in ranges)


def _partials(shape: CacheShape, rows: Ranges) -> int:
    rows = list(rows)
    return _scaled(rows, shape.head_dim * STATISTIC_BYTES) + 2 * _scaled(rows, STATISTIC_BYTES)


def _heads(shape: CacheShape, places: set[int]) -> int:
    """Of a number a head, for these places within each group."""
    heads = (i_kv * shape.group + place for i_kv in range(shape.kv_heads) for place in places)
    return _scaled(((h, h + 1) for h in heads), STATISTIC_BYTES)
