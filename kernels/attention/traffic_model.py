"""The exact bytes our attention kernels request from HBM, tile by tile: `traffic` counts them and must agree.

Pure arithmetic over the kernels' own loop bounds. A lane that a mask switches off is not requested. Tensor
names are the kernels' arguments without ``p_``, or the fields of their named tuples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import ceil
from typing import NamedTuple

from lit_eff.kernels.attention.io_model import AttentionShape
from lit_eff.kernels.attention.tiles import DELTA_BLOCK_M, Tiles
from lit_eff.profiling.modelled import STATISTIC_BYTES, Traffic

RANGE_BYTES = 3 * 4  # of one tile in `documents.document_ranges`
SEED_BYTES = 8


class Bounds(NamedTuple):
    """Rows that a program walks, from start to stop; from inner start to inner stop without masks."""

    start: int
    inner_start: int
    inner_stop: int
    stop: int

    def blocks(self, step: int) -> list[tuple[int, bool]]:
        """First rows of the blocks, in order, and whether their scores are masked."""
        left = range(self.start, min(self.inner_start, self.stop), step)
        inner = range(self.inner_start, self.inner_stop, step)
        right = range(self.inner_stop, self.stop, step)
        return [(n, True) for n in left] + [(n, False) for n in inner] + [(n, True) for n in right]


def key_range(shape: AttentionShape, tiles: Tiles, first: int, row: int) -> Bounds:
    """Keys that the query tile at ``first`` of batch row ``row`` visits: `blocks.key_range` in Python."""
    offset, step = shape.offsets()[row], tiles.block_n
    first_slot, last_slot = first + offset, min(first + tiles.block_m, shape.queries) - 1 + offset
    start, inner_start = 0, 0
    stop, inner_stop = shape.keys, _down(shape.keys, step)
    if shape.is_causal:
        stop, inner_stop = min(stop, max(last_slot + 1, 0)), min(inner_stop, _down(first_slot + 1, step))
    if shape.window is not None:
        start, inner_start = (
            _down(first_slot - shape.window + 1, step),
            _up(last_slot - shape.window + 1, step),
        )
        if not shape.is_causal:
            stop = min(stop, max(last_slot + shape.window, 0))
            inner_stop = min(inner_stop, _down(first_slot + shape.window, step))
    bounds = Bounds(start, inner_start, inner_stop, stop)
    if shape.documents is not None and shape.key_documents is not None:
        own = shape.documents[row][first : first + tiles.block_m]
        bounds = _within_documents(bounds, own, shape.key_documents[row], step)
    return bounds._replace(inner_stop=max(bounds.inner_stop, bounds.inner_start))


def query_range(shape: AttentionShape, tiles: Tiles, first: int, row: int) -> Bounds:
    """Queries that the key tile at ``first`` of batch row ``row`` visits, as `blocks.query_range`."""
    offset, step = shape.offsets()[row], tiles.block_m
    last = min(first + tiles.block_n, shape.keys) - 1
    start, inner_start = 0, 0
    stop, inner_stop = shape.queries, ceil(shape.queries / step) * step
    if shape.is_causal:
        start, inner_start = _down(first - offset, step), _up(last - offset, step)
    if shape.window is not None:
        behind, ahead = shape.window - offset, shape.window - 1 + offset
        stop, inner_stop = min(stop, max(last + behind, 0)), min(inner_stop, _down(first + behind, step))
        if not shape.is_causal:
            start, inner_start = _down(first - ahead, step), _up(last - ahead, step)
    bounds = Bounds(start, inner_start, inner_stop, stop)
    if shape.documents is not None and shape.key_documents is not None:
        own = shape.key_documents[row][first : first + tiles.block_n]
        bounds = _within_documents(bounds, own, shape.documents[row], step)
    return bounds._replace(inner_stop=max(bounds.inner_stop, bounds.inner_start))


def _down(row: int, step: int) -> int:
    return max(row, 0) // step * step


def _up(row: int, step: int) -> int:
    return ceil(max(row, 0) / step) * step


def _within_documents(bounds: Bounds, own: tuple[int, ...], other: tuple[int, ...], step: int) -> Bounds:
    """`documents.document_ranges` for one tile, and `blocks._within_documents`."""
    ids, others = ([i % 2**32 for i in rows] for rows in (own, other))  # unsigned
    seen = [index for index, i in enumerate(others) if min(ids) <= i <= max(ids)]
    first, stop = (seen[0], seen[-1] + 1) if seen else (0, 0)
    start, stop_all = max(bounds.start, _down(first, step)), min(bounds.stop, stop)
    if min(ids) == max(ids) and len(seen) == stop - first:
        inner = max(bounds.inner_start, _up(first, step)), min(bounds.inner_stop, _down(stop, step))
    else:
        inner = start, start
    return Bounds(start, *inner, stop_all)


Ranges = Callable[[AttentionShape, Tiles, int, int], Bounds]


class _Walk(NamedTuple):
    """Sums over the programs of one head, all batch rows."""

    programs: int
    owned: int  # rows
    walked: int
    masked: int  # of the rows walked


def _walk(
    shape: AttentionShape, tiles: Tiles, ranges: Ranges, own: int, other: int, step: int, other_step: int
) -> _Walk:
    programs = owned = walked = masked = 0
    for row in range(shape.batch):
        for first in range(0, own, step):
            programs += 1
            owned += min(step, own - first)
            for n, is_masked in ranges(shape, tiles, first, row).blocks(other_step):
                walked += min(other_step, other - n)
                masked += min(other_step, other - n) if is_masked else 0
    return _Walk(programs, owned, walked, masked)


def _query_walk(shape: AttentionShape, tiles: Tiles) -> _Walk:
    """Over all query heads."""
    walk = _walk(shape, tiles, key_range, shape.queries, shape.keys, tiles.block_m, tiles.block_n)
    return _Walk(*(each * shape.heads for each in walk))


def _extras(shape: AttentionShape, programs: int, heads: int, query_ids: int, key_ids: int) -> dict[str, int]:
    """What masks and the rule add; ``heads`` counts (program, query head) pairs."""
    reads = {}
    if shape.documents is not None:
        reads["query_ids"] = query_ids * shape.id_bytes
        reads["key_ids"] = key_ids * shape.id_bytes
        reads["ranges"] = programs * RANGE_BYTES
    if shape.starts is not None:
        reads["starts"] = programs * shape.id_bytes
    if shape.alibi:
        reads["slopes"] = heads * STATISTIC_BYTES
    if shape.dropout:
        reads["seed"] = heads * SEED_BYTES
    return reads


def _sinks(shape: AttentionShape, programs: int) -> dict[str, int]:
    return {"sinks": programs * STATISTIC_BYTES} if shape.sinks else {}


def document_ranges_traffic(shape: AttentionShape, own: int, other: int, block: int) -> Traffic:
    """Requests of `document_ranges_kernel`: whole tiles of own ids, and all other ids for each of them."""
    tiles = shape.batch * ceil(own / block)
    return Traffic(
        {"own": tiles * block * shape.id_bytes, "other": tiles * other * shape.id_bytes},
        {"ranges": tiles * RANGE_BYTES},
    )


def forward_traffic(shape: AttentionShape, tiles: Tiles) -> Traffic:
    """Requests of `attention_forward_kernel`: Q, O and LSE once, K and V once a query tile that sees them."""
    walk = _query_walk(shape, tiles)
    row = shape.head_dim * shape.element_bytes
    return Traffic(
        {"q": walk.owned * row, "k": walk.walked * row, "v": walk.walked * row}
        | _sinks(shape, walk.programs)
        | _extras(shape, walk.programs, walk.programs, walk.owned, walk.masked),
        {"out": walk.owned * row, "lse": walk.owned * STATISTIC_BYTES},
    )


def delta_traffic(shape: AttentionShape, *, lse_gradient: bool = False) -> Traffic:
    """Requests of `attention_delta_kernel`: O, dO and perhaps dLSE in, delta out."""
    rows = shape.batch * shape.heads * shape.queries
    row = shape.head_dim * shape.element_bytes
    reads = {"out": rows * row, "dout": rows * row}
    if lse_gradient:
        reads["dlse"] = rows * STATISTIC_BYTES
    return Traffic(reads, {"delta": rows * STATISTIC_BYTES})


def key_gradient_traffic(shape: AttentionShape, tiles: Tiles) -> Traffic:
    """Requests of `attention_key_gradient_kernel`: K, V, dK, dV once; Q, dO once a key tile they see."""
    walk = _walk(shape, tiles, query_range, shape.keys, shape.queries, tiles.block_n, tiles.block_m)
    programs, owned = walk.programs * shape.kv_heads, walk.owned * shape.kv_heads
    walked, masked = walk.walked * shape.heads, walk.masked * shape.heads
    row = shape.head_dim * shape.element_bytes
    return Traffic(
        {"k": owned * row, "v": owned * row, "q": walked * row, "dout": walked * row}
        | {"lse": walked * STATISTIC_BYTES, "delta": walked * STATISTIC_BYTES}
        | _extras(shape, programs, walk.programs * shape.heads, masked, owned),
        {"dk": owned * row, "dv": owned * row},
    )


def query_gradient_traffic(shape: AttentionShape, tiles: Tiles) -> Traffic:
    """Requests of `attention_query_gradient_kernel`: Q, dO, dQ once; K, V once a query tile."""
    walk = _query_walk(shape, tiles)
    row = shape.head_dim * shape.element_bytes
    return Traffic(
        {"q": walk.owned * row, "dout": walk.owned * row, "k": walk.walked * row, "v": walk.walked * row}
        | {"lse": walk.owned * STATISTIC_BYTES, "delta": walk.owned * STATISTIC_BYTES}
        | _extras(shape, walk.programs, walk.programs, walk.owned, walk.masked),
        {"dq": walk.owned * row},
    )


class PackedShapes(NamedTuple):
    """Packed sequences, each a shape of batch 1; ``length_bytes`` is the size of a cumulative length."""

    sequences: Sequence[AttentionShape]
    length_bytes: int = 4

    def forward_traffic(self, tiles: Tiles) -> Traffic:
        """Requests of `attention_forward_kernel`."""

        def idle(shape: AttentionShape, programs: int) -> dict[str, int]:
            return _sinks(shape, programs) | _extras(shape, programs, programs, 0, 0)

        return self._sum(
            lambda shape: forward_traffic(shape, tiles),
            lambda shape: ceil(shape.queries / tiles.block_m) * shape.heads,
            idle,
        )

    def delta_traffic(self, *, lse_gradient: bool = False) -> Traffic:
        """Requests of `attention_delta_kernel`."""
        return self._sum(
            lambda shape: delta_traffic(shape, lse_gradient=lse_gradient),
            lambda shape: ceil(shape.queries / DELTA_BLOCK_M) * shape.heads,
            lambda shape, programs: {},
        )

    def key_gradient_traffic(self, tiles: Tiles) -> Traffic:
        """Requests of `attention_key_gradient_kernel`."""

        def idle(shape: AttentionShape, programs: int) -> dict[str, int]:
            return _extras(shape, programs, programs * shape.heads // shape.kv_heads, 0, 0)

        return self._sum(
            lambda shape: key_gradient_traffic(shape, tiles),
            lambda shape: ceil(shape.keys / tiles.block_n) * shape.kv_heads,
            idle,
        )

    def query_gradient_traffic(self, tiles: Tiles) -> Traffic:
        """Requests of `attention_query_gradient_kernel`."""
        return self._sum(
            lambda shape: query_gradient_traffic(shape, tiles),
            lambda shape: ceil(shape.queries / tiles.block_m) * shape.heads,
            lambda shape, programs: _extras(shape, programs, programs, 0, 0),
        )

    def _sum(
        self,
        traffic: Callable[[AttentionShape], Traffic],
        programs: Callable[[AttentionShape], int],
        idle: Callable[[AttentionShape, int], dict[str, int]],
    ) -> Traffic:
        """Each sequence gets the programs of the longest; ``idle`` ones find that out, and no more."""
        most = max(map(programs, self.sequences), default=0)
        reads: Counter[str] = Counter()
        writes: Counter[str] = Counter()
        for shape in self.sequences:
            own = traffic(shape)
            reads.update(own.reads)
            writes.update(own.writes)
            reads.update(idle(shape, most - programs(shape)))
            reads.update(dict.fromkeys(("cu_seqlens_q", "cu_seqlens_k"), 2 * most * self.length_bytes))
        return Traffic(dict(reads), dict(writes))
