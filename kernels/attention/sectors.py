"""The distinct 32-byte sectors that our attention kernels read: the least that a cold cache leaves to HBM.

Pure arithmetic over the same loops as `traffic_model`. Tensors are contiguous.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import NamedTuple

from lit_eff.kernels.attention.io_model import AttentionShape
from lit_eff.kernels.attention.tiles import Tiles
from lit_eff.kernels.attention.traffic_model import (
    RANGE_BYTES,
    SEED_BYTES,
    PackedShapes,
    Ranges,
    key_range,
    query_range,
)
from lit_eff.profiling.modelled import STATISTIC_BYTES, sector_bytes, whole_sectors


class Row(NamedTuple):
    """One batch row or packed sequence, and how many rows of each tensor lie before its own."""

    shape: AttentionShape
    i_b: int  # within the shape
    first_query: int
    first_key: int
    first_statistic: int
    next_head: int  # statistics from one head to the next


class Rows(NamedTuple):
    """All rows of a call. ``lengths`` are the bytes of the cumulative lengths of one side, if packed."""

    rows: list[Row]
    queries: int
    keys: int
    shape: AttentionShape  # heads and options, the same in all rows
    lengths: int = 0

    @classmethod
    def of_batch(cls, shape: AttentionShape) -> Rows:
        t, s, heads = shape.queries, shape.keys, shape.heads
        rows = [Row(shape, b, b * t, b * s, b * heads * t, t) for b in range(shape.batch)]
        return cls(rows, shape.batch * t, shape.batch * s, shape)

    @classmethod
    def of_packed(cls, packed: PackedShapes) -> Rows:
        queries, keys = (sum(getattr(s, name) for s in packed.sequences) for name in ("queries", "keys"))
        rows: list[Row] = []
        first_query = first_key = 0
        for shape in packed.sequences:
            rows.append(Row(shape, 0, first_query, first_key, first_query, queries))
            first_query, first_key = first_query + shape.queries, first_key + shape.keys
        return cls(rows, queries, keys, packed.sequences[0], (len(rows) + 1) * packed.length_bytes)

    def whole_queries(self, tensors: int) -> int:
        """Of tensors like q."""
        shape = self.shape
        return tensors * whole_sectors(self.queries * shape.heads * shape.head_dim * shape.element_bytes)

    def whole_keys(self, tensors: int) -> int:
        """Of tensors like k."""
        shape = self.shape
        return tensors * whole_sectors(self.keys * shape.kv_heads * shape.head_dim * shape.element_bytes)

    def whole_statistics(self, tensors: int) -> int:
        """Of tensors like the log-sum-exp."""
        return tensors * whole_sectors(self.queries * self.shape.heads * STATISTIC_BYTES)

    def rule(self, tiles: int) -> int:
        """What masks and scores add; ``tiles`` is how many a batch row has, each with its range of rows."""
        shape = self.shape
        sizes = [self.lengths, self.lengths]
        if shape.documents is not None:
            sizes.append(shape.batch * tiles * RANGE_BYTES)
        if shape.starts is not None:
            sizes.append(shape.batch * shape.id_bytes)
        if shape.alibi:
            sizes.append(shape.heads * STATISTIC_BYTES)
        if shape.dropout:
            sizes.append(SEED_BYTES)
        return whole_sectors(*sizes)


def document_ranges_sectors(shape: AttentionShape) -> int:
    """Of `document_ranges_kernel`, whichever side owns the tiles."""
    return whole_sectors(*(shape.batch * rows * shape.id_bytes for rows in (shape.queries, shape.keys)))


def forward_sectors(rows: Rows, tiles: Tiles) -> int:
    """Of `attention_forward_kernel`: Q, and the keys and values that some query tile visits."""
    sinks = whole_sectors(rows.shape.heads * STATISTIC_BYTES) if rows.shape.sinks else 0
    return rows.whole_queries(1) + sinks + _walked_keys(rows, tiles)


def delta_sectors(rows: Rows, *, lse_gradient: bool = False) -> int:
    """Of `attention_delta_kernel`."""
    lengths = whole_sectors(rows.lengths, rows.lengths)
    return rows.whole_queries(2) + rows.whole_statistics(1 if lse_gradient else 0) + lengths


def key_gradient_sectors(rows: Rows, tiles: Tiles) -> int:
    """Of `attention_key_gradient_kernel`: K and V, and the queries that some key tile visits."""
    shape = rows.shape
    width = shape.heads * shape.head_dim * shape.element_bytes
    like_q: list[tuple[int, int]] = []
    statistics: list[tuple[int, int]] = []
    query_ids: list[tuple[int, int]] = []
    for row in rows.rows:
        for start, stop, masked in _visited(row, tiles, query_range):
            place = row.first_query + start
            like_q.append((place * width, (place + stop - start) * width))
            for head in range(shape.heads):
                first = row.first_statistic + head * row.next_head + start
                statistics.append((first * STATISTIC_BYTES, (first + stop - start) * STATISTIC_BYTES))
            if masked and shape.documents is not None:
                query_ids.append((place * shape.id_bytes, (place + stop - start) * shape.id_bytes))
    key_ids = whole_sectors(rows.keys * shape.id_bytes) if shape.documents is not None else 0
    walked = 2 * sector_bytes(like_q) + 2 * sector_bytes(statistics) + sector_bytes(query_ids)
    return rows.whole_keys(2) + walked + key_ids + rows.rule(ceil(shape.keys / tiles.block_n))


def query_gradient_sectors(rows: Rows, tiles: Tiles) -> int:
    """Of `attention_query_gradient_kernel`: Q, dO and their statistics, and the keys visited."""
    return rows.whole_queries(2) + rows.whole_statistics(2) + _walked_keys(rows, tiles)


def _walked_keys(rows: Rows, tiles: Tiles) -> int:
    """K, V and what masks and the rule add, for kernels whose programs own queries."""
    shape = rows.shape
    width = shape.kv_heads * shape.head_dim * shape.element_bytes
    like_k: list[tuple[int, int]] = []
    key_ids: list[tuple[int, int]] = []
    for row in rows.rows:
        for start, stop, masked in _visited(row, tiles, key_range):
            place = row.first_key + start
            like_k.append((place * width, (place + stop - start) * width))
            if masked and shape.documents is not None:
                key_ids.append((place * shape.id_bytes, (place + stop - start) * shape.id_bytes))
    query_ids = whole_sectors(rows.queries * shape.id_bytes) if shape.documents is not None else 0
    rule = rows.rule(ceil(shape.queries / tiles.block_m))
    return 2 * sector_bytes(like_k) + sector_bytes(key_ids) + query_ids + rule


def _visited(row: Row, tiles: Tiles, ranges: Ranges) -> Iterator[tuple[int, int, bool]]:
    """Rows [start, stop) of the blocks that some tile of a batch row visits, and whether one masks them."""
    shape = row.shape
    own, other, own_step, step = shape.queries, shape.keys, tiles.block_m, tiles.block_n
    if ranges is query_range:
        own, other, own_step, step = other, own, step, own_step
    visited: dict[int, bool] = {}
    for first in range(0, own, own_step):
        for n, masked in ranges(shape, tiles, first, row.i_b).blocks(step):
            visited[n] = visited.get(n, False) or masked
    for n, masked in visited.items():
        yield n, min(n + step, other), masked
