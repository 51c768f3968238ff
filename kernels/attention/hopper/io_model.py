"""The bytes that the Hopper kernels request from HBM, tile by tile: pure arithmetic over their own loops.

The copy engine (TMA) moves the rows of a tile that exist; those past the end are filled with zeros, which
moves nothing. There is no interpreter to count the Gluon kernels in; the two Triton kernels beside them are
counted. ``sectors`` leave out what a kernel writes and reads again, which L2 serves. Tensor names are the
kernels' arguments without ``p_`` and ``d_``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from lit_eff.kernels.attention.hopper.backward import GradientTiles
from lit_eff.kernels.attention.hopper.shapes import ForwardShape
from lit_eff.kernels.attention.io_model import AttentionShape
from lit_eff.profiling.modelled import STATISTIC_BYTES, Traffic, sector_bytes, whole_sectors

CONSUMER_ROWS = 64
TURN_BYTES = 4
SCALED_ELEMENTS = 512  # of the sums that the scaling warps take at a time


def _like_q(shape: AttentionShape) -> int:
    return shape.batch * shape.heads * shape.queries * shape.head_dim * shape.element_bytes


def _like_k(shape: AttentionShape) -> int:
    return shape.batch * shape.kv_heads * shape.keys * shape.head_dim * shape.element_bytes


def _statistics(shape: AttentionShape, rows: int) -> int:
    """One number for each of ``rows`` rows of every head."""
    return shape.batch * shape.heads * rows * STATISTIC_BYTES


def forward_key_blocks(shape: AttentionShape, tiles: ForwardShape, b: int, first: int) -> range:
    """Key blocks that the query tile from ``first`` loads: at least one, though it may see nothing."""
    count = min(tiles.consumers * CONSUMER_ROWS, shape.queries - first)
    start, stop = shape.visible(first, count, shape.offsets()[b])
    start = min(start, shape.keys - 1) // tiles.block_n
    return range(start, max(ceil(min(stop, shape.keys) / tiles.block_n), start + 1))


def forward_traffic(shape: AttentionShape, tiles: ForwardShape, programs: int) -> Traffic:
    """Requests of `hopper.forward.attention_forward_kernel`: Q and O once, K and V once a query tile.

    First slots are asked for by each partition: once a turn, and ahead of the first turns (once by the
    producer, twice by a consumer). Sinks by each consumer, once a turn.
    """
    block_m, row = tiles.consumers * CONSUMER_ROWS, shape.head_dim * shape.element_bytes
    walked = seen = turns = 0
    for b in range(shape.batch):
        blocks: set[int] = set()
        for first in range(0, shape.queries, block_m):
            turns += shape.heads
            visited = forward_key_blocks(shape, tiles, b, first)
            walked += _rows_of(visited, tiles.block_n, shape.keys)
            blocks.update(visited)
        seen += _rows_of(blocks, tiles.block_n, shape.keys)
    walked *= shape.heads
    reads = {"q": _like_q(shape), "k": walked * row, "v": walked * row}
    sectors = _like_q(shape) + 2 * seen * shape.kv_heads * row
    if shape.starts is not None:
        asked = turns * (1 + tiles.consumers) + programs * (1 + 2 * tiles.consumers)
        reads["starts"] = asked * shape.id_bytes
        sectors += whole_sectors(shape.batch * shape.id_bytes)
    if shape.sinks:
        reads["sinks"] = turns * tiles.consumers * STATISTIC_BYTES
        sectors += whole_sectors(shape.heads * STATISTIC_BYTES)
    writes = {"out": _like_q(shape), "lse": _statistics(shape, shape.queries)}
    return Traffic(reads, writes, sectors=sectors)


def _rows_of(blocks: range | set[int], step: int, rows: int) -> int:
    return sum(min(step, rows - n * step) for n in blocks)


@dataclass(frozen=True)
class GradientShape:
    """A backward's three launches; the gradient kernel finishes ``scaled`` query blocks of dQ itself."""

    shape: AttentionShape
    tiles: GradientTiles
    scaled: int

    @property
    def query_blocks(self) -> int:
        return ceil(self.shape.queries / self.tiles.block_m)

    @property
    def key_blocks(self) -> int:
        return ceil(self.shape.keys / self.tiles.block_n)

    @property
    def padded(self) -> int:
        """Rows of a head in whole query blocks."""
        return self.query_blocks * self.tiles.block_m

    def first_query_block(self, i_n: int) -> int:
        """The first that a key block adds to; the others follow to the last."""
        if not self.shape.causal:
            return 0
        offset = self.shape.keys - self.shape.queries
        return max(i_n * self.tiles.block_n - offset, 0) // self.tiles.block_m

    def adders(self, i_m: int) -> int:
        """Key blocks that add to a query block."""
        return sum(self.first_query_block(i_n) <= i_m for i_n in range(self.key_blocks))

    def query_rows(self, i_m: int) -> int:
        return min(self.tiles.block_m, self.shape.queries - i_m * self.tiles.block_m)


def row_sums_traffic(backward: GradientShape, *, lse_gradient: bool = False) -> Traffic:
    """Requests of `attention_row_sums_kernel`: O and dO in; delta, and rows of whole query blocks, out."""
    shape = backward.shape
    statistic, padded = _statistics(shape, shape.queries), _statistics(shape, backward.padded)
    reads = {"out": _like_q(shape), "dout": _like_q(shape), "lse": statistic}
    if lse_gradient:
        reads["dlse"] = statistic
    turns = shape.batch * shape.heads * backward.query_blocks * TURN_BYTES
    return Traffic(
        reads,
        {"rows_lse": padded, "rows_delta": padded, "delta": statistic, "turns": turns},
        sectors=whole_sectors(*reads.values()),
    )


def gradient_traffic(backward: GradientShape) -> Traffic:
    """Requests of `attention_gradient_kernel`: K, V, dK, dV once; Q, dO once a key block that they see.

    The first key block to come writes a query block's dQ, the others add to it in L2. Of the counters that
    set the order, each look is modelled once: how often a program looks again is a matter of time.
    """
    shape, block_m = backward.shape, backward.tiles.block_m
    heads = shape.batch * shape.heads
    row, row_float = shape.head_dim * shape.element_bytes, shape.head_dim * STATISTIC_BYTES
    # Of one head: every step's query block, and the distinct ones, whose first steps open their sums.
    steps = [
        i_m
        for i_n in range(backward.key_blocks)
        for i_m in range(backward.first_query_block(i_n), backward.query_blocks)
    ]
    opened = set(steps)
    later = len(steps) - len(opened)
    scaled = [i % backward.query_blocks for i in range(backward.scaled)]
    lines = SCALED_ELEMENTS // shape.head_dim
    sums = sum(ceil(backward.query_rows(i_m) / lines) * lines for i_m in scaled)
    looks = sum(backward.adders(i_m) > 0 for i_m in scaled)

    like_q = heads * row * sum(map(backward.query_rows, steps))
    statistic = heads * block_m * STATISTIC_BYTES
    least = heads * row * sum(map(backward.query_rows, opened)) + statistic * len(opened) + _like_k(shape)
    return Traffic(
        {"q": like_q, "dout": like_q, "k": _like_k(shape), "v": _like_k(shape)}
        | {"lse": statistic * len(steps), "delta": statistic * len(steps)}
        | {"dq_sum": sums * row_float, "turns": (heads * later + looks) * TURN_BYTES},
        {"dk": _like_k(shape), "dv": _like_k(shape), "dq_sum": heads * len(opened) * block_m * row_float}
        | {"dq": row * sum(map(backward.query_rows, scaled)), "turns": heads * len(steps) * TURN_BYTES},
        {"dq_sum": heads * later * block_m * row_float},
        sectors=2 * least,
    )


def scale_traffic(backward: GradientShape) -> Traffic:
    """Requests of `attention_scale_query_gradient_kernel`: the sums that are left, and dQ."""
    shape = backward.shape
    row, row_float = shape.head_dim * shape.element_bytes, shape.head_dim * STATISTIC_BYTES
    blocks = range(backward.scaled, shape.batch * shape.heads * backward.query_blocks)
    places = [i % backward.query_blocks for i in blocks]
    sums = row_float * sum(backward.query_rows(i_m) for i_m in places if backward.adders(i_m))
    turns = sector_bytes([(blocks.start * TURN_BYTES, blocks.stop * TURN_BYTES)])
    return Traffic(
        {"dq_sum": sums, "turns": len(blocks) * TURN_BYTES},
        {"dq": row * sum(map(backward.query_rows, places))},
        sectors=sums + turns,
    )
