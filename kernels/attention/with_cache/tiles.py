"""Attention on a cache: the constants that define a result's bits, and how work is dealt, which does not."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from lit_eff.kernels.attention.tiles import padded_head_dim

WAVES = 16  # programs a multiprocessor, at most: a large capacity must not start idle programs by thousands
WHOLE_WAVES = 8  # row tiles a multiprocessor from which on each program walks its rows' whole cache
SEGMENT_FILL = 0.75  # segments a multiprocessor from which on programs own segments rather than chunks


@dataclass(frozen=True)
class CacheTiles:
    """``rows`` of (query, head of the group); slots a step, a chunk and a segment, each dividing the next.

    The row tile is one height whatever the rows in use: 64 is the one height of Hopper's matrix instruction,
    and four of Ampere's. These numbers may depend on dtype, head dim and device type, never on batch, lengths
    or the number of queries. Softmax runs on from step to step within a chunk; chunks are joined in order to
    segments, segments in order to the result. All borders are multiples of these constants, so that a row
    meets the same sums in the same order in any company.
    """

    rows: int
    block_n: int
    chunk: int
    segment: int
    num_warps: int
    num_stages: int


def cache_tiles(head_dim: int, element_bytes: int, capability: int = 80) -> CacheTiles:
    """Tiles for a head dim, element size and CUDA capability (10 * major + minor)."""
    width = padded_head_dim(head_dim)
    if element_bytes == 4:
        return CacheTiles(64, 32 if width <= 128 else 16, 256, 4096, 8, 2)
    if 90 <= capability < 120:  # 227 KB of shared memory
        return CacheTiles(64, 64, 256, 4096, 4, 3 if width <= 128 else 2)
    return CacheTiles(64, 64 if width <= 128 else 32, 256, 4096, 4, 2)  # fits 99 KB


class Unit(Enum):
    """What a program owns of a row tile's cache; the combine kernel joins all but whole rows."""

    CHUNK = "chunk"
    SEGMENT = "segment"
    ROW = "row"


@dataclass(frozen=True)
class Deal:
    """The unit of work, how many of them a row may have, and the programs that share them."""

    unit: Unit
    parts: int
    runs: int


def deal(tiles: CacheTiles, slots: int, row_tiles: int, processors: int) -> Deal:
    """Share out rows of up to ``slots`` slots. ``row_tiles``: those of all rows and kv heads together.

    The largest unit that keeps the device busy: partial results cost traffic, and starting costs time.
    Lengths are not known on the host: a program finds its run of units from the length that it loads.
    """
    segments = max(1, -(-slots // tiles.segment))
    chunks = max(1, -(-slots // tiles.chunk))
    filled = row_tiles * segments >= SEGMENT_FILL * processors
    if row_tiles >= WHOLE_WAVES * processors or chunks == 1 or (filled and segments == 1):
        return Deal(Unit.ROW, segments, 1)
    unit, parts = (Unit.SEGMENT, segments) if filled else (Unit.CHUNK, chunks)
    return Deal(unit, parts, min(parts, -(-WAVES * processors // row_tiles)))
