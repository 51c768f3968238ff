"""The exact bytes that attention on a cache requests from HBM, program by program: pure arithmetic.

A lane that a mask switches off is not requested. Tensor names are the kernels' pointer arguments without
``p_``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from lit_eff.kernels.attention.with_cache.tiles import CacheTiles, Deal, Unit
from lit_eff.profiling.modelled import STATISTIC_BYTES, Traffic


@dataclass(frozen=True)
class CacheShape:
    """One call. ``page_size`` 0 is a contiguous cache; index sizes are those of lengths and page numbers."""

    queries: int
    heads: int
    kv_heads: int
    head_dim: int
    lengths: tuple[int, ...]
    capacity: int
    element_bytes: int = 2
    query_lengths: tuple[int, ...] | None = None
    page_size: int = 0
    window: int | None = None
    tree: bool = False
    sinks: bool = False
    alibi: bool = False
    length_bytes: int = 8
    page_bytes: int = 4

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def rows(self) -> int:
        return self.queries * self.group

    def counts(self) -> tuple[int, ...]:
        return self.query_lengths or (self.queries,) * len(self.lengths)

    @property
    def row_bytes(self) -> int:
        """Of one head's query, key or value."""
        return self.head_dim * self.element_bytes

    def visible_pairs(self) -> int:
        """Pairs of one query and one slot it sees, over rows and query heads, the tree aside."""
        seen = (
            len(self.seen_slots(t * self.group, 1, b))
            for b in range(len(self.lengths))
            for t in range(self.queries)
        )
        return sum(seen) * self.heads

    def is_there(self, row: int, b: int) -> bool:
        """Whether a tile's row belongs to a query that batch row b has."""
        return row // self.group < self.counts()[b]

    def seen_slots(self, first_row: int, rows: int, b: int) -> range:
        """Slots that any of the rows from ``first_row`` sees."""
        count, length = self.counts()[b], self.lengths[b]
        first_t = first_row // self.group
        last_t = min((first_row + rows - 1) // self.group, count - 1)
        if last_t < first_t:
            return range(0)
        start = 0 if self.window is None else max(length + first_t - self.window + 1, 0)
        return range(start, min(length + last_t + 1, self.capacity))


def cache_bytes(shape: CacheShape) -> int:
    """Keys and values that the queries see, once: what bandwidths of decoding are quoted on."""
    slots = sum(len(shape.seen_slots(0, shape.rows, b)) for b in range(len(shape.lengths)))
    return 2 * slots * shape.kv_heads * shape.row_bytes


def split_flops(shape: CacheShape) -> int:
    """4 D (two products) a visible pair."""
    return 4 * shape.head_dim * shape.visible_pairs()


def combine_flops(shape: CacheShape, tiles: CacheTiles, share: Deal) -> int:
    """3 D a part of a row: its product with a weight, and a multiply-add to the sum so far."""
    parts = (
        len(units_of(shape.seen_slots(row, 1, b), tiles, share))
        for b in range(len(shape.lengths))
        for row in range(shape.rows)
    )
    return 3 * shape.head_dim * shape.kv_heads * sum(parts)


def cache_traffic(shape: CacheShape, tiles: CacheTiles, share: Deal) -> list[Traffic]:
    """Requests of each launch: the split kernel's, then the combine kernel's unless programs own rows."""
    reads: Counter[str] = Counter()
    writes: Counter[str] = Counter()
    for b in range(len(shape.lengths)):
        for first in range(0, shape.rows, tiles.rows):
            _index_reads(reads, shape, share.runs)
            _split_tile(reads, writes, shape, tiles, share, b, first)
    split = all_heads(reads, writes, shape.kv_heads)
    return [split] if share.unit is Unit.ROW else [split, combine_traffic(shape, tiles, share)]


def _index_reads(reads: Counter[str], shape: CacheShape, programs: int) -> None:
    reads["lengths"] += programs * shape.length_bytes
    if shape.query_lengths is not None:
        reads["query_lengths"] += programs * shape.length_bytes


def _split_tile(
    reads: Counter[str],
    writes: Counter[str],
    shape: CacheShape,
    tiles: CacheTiles,
    share: Deal,
    b: int,
    first: int,
) -> None:
    """What the programs of the row tile from ``first`` and of one kv head request, lengths aside."""
    row = shape.row_bytes
    own = range(first, min(first + tiles.rows, shape.rows))
    there = sum(shape.is_there(r, b) for r in own)
    slots = shape.seen_slots(first, tiles.rows, b)
    units = units_of(slots, tiles, share)
    whole = share.unit is Unit.ROW
    programs = 1 if whole else -(-len(units) // max(-(-len(units) // share.runs), 1))
    reads["q"] += share.runs * len(own) * row
    if shape.tree:
        ends = (steps_of(slots, tiles, share, unit) for unit in units)
        reached = sum(len(steps) > 0 and steps[-1] + tiles.block_n > shape.lengths[b] for steps in ends)
        reads["tree"] += reached * there * shape.queries
    if shape.alibi:
        reads["alibi"] += programs * there * STATISTIC_BYTES
    reads["k"] += len(slots) * row
    reads["v"] += len(slots) * row
    if shape.page_size:
        entries = sum(sum(_page_entries(shape, slots, tiles, share, b, unit)) for unit in units)
        reads["page_table"] += entries * shape.page_bytes
    if not whole:
        count_partials(writes, shape, len(units) * there)
    elif share.parts > 1:  # what a program carries from segment to segment
        count_partials(reads, shape, max(len(units) - 1, 0) * there)
        count_partials(writes, shape, max(len(units) - 1, 0) * there)
    if whole:
        count_finish(reads, writes, shape, len(own), there)


def units_of(slots: range, tiles: CacheTiles, share: Deal) -> range:
    """Chunks or segments that hold some of ``slots``."""
    size = unit_slots(tiles, share)
    return range(slots.start // size, -(-slots.stop // size))


def unit_slots(tiles: CacheTiles, share: Deal) -> int:
    return tiles.chunk if share.unit is Unit.CHUNK else tiles.segment


def steps_of(slots: range, tiles: CacheTiles, share: Deal, unit: int) -> range:
    """First slots of the steps through one unit."""
    size, step = unit_slots(tiles, share), tiles.block_n
    return range(max(unit * size, slots.start // step * step), min((unit + 1) * size, slots.stop), step)


def _page_entries(
    shape: CacheShape, slots: range, tiles: CacheTiles, share: Deal, b: int, unit: int
) -> Iterator[int]:
    """Entries asked for before each loop over steps, and during each step for the next."""
    step, steps = tiles.block_n, steps_of(slots, tiles, share, unit)
    places = [steps.start, *(n + step for n in steps)]
    tree = max(shape.lengths[b] // step * step, steps.start)
    if shape.tree and tree < steps.stop:
        places.append(tree)
    for n in places:
        ahead = max(min(step, slots.stop - n), 0)
        yield min(ahead, 1) if shape.page_size % step == 0 else ahead


def count_partials(count: Counter[str], shape: CacheShape, rows: int) -> None:
    """Partial results of so many rows of one kv head."""
    count["partial"] += rows * shape.head_dim * STATISTIC_BYTES
    count["max"] += rows * STATISTIC_BYTES
    count["sum"] += rows * STATISTIC_BYTES


def count_finish(reads: Counter[str], writes: Counter[str], shape: CacheShape, rows: int, there: int) -> None:
    """What ends the rows of one kv head, of which those ``there`` have a query."""
    if shape.sinks:
        reads["sinks"] += there * STATISTIC_BYTES
    writes["lse"] += rows * STATISTIC_BYTES
    writes["out"] += rows * shape.row_bytes


def combine_traffic(shape: CacheShape, tiles: CacheTiles, share: Deal) -> Traffic:
    """Requests of `cache_combine_kernel`: every part that a row has, once."""
    reads: Counter[str] = Counter()
    writes: Counter[str] = Counter()
    for b in range(len(shape.lengths)):
        for row in range(shape.rows):
            _index_reads(reads, shape, 1)
            count_partials(reads, shape, len(units_of(shape.seen_slots(row, 1, b), tiles, share)))
            count_finish(reads, writes, shape, 1, shape.is_there(row, b))
    return all_heads(reads, writes, shape.kv_heads)


def all_heads(reads: Counter[str], writes: Counter[str], kv_heads: int) -> Traffic:
    """Of all kv heads, which request the same."""
    return Traffic(*({name: n * kv_heads for name, n in count.items() if n} for count in (reads, writes)))
