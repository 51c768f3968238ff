"""Attention on a cache: the constants that define a result's bits, and how work is dealt, which does not."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from lit_eff.kernels.attention.tiles import padded_head_dim

# Row tiles a multiprocessor from which on there is work enough, and partial results are too large.
ROWS_ONLY = 8


@dataclass(frozen=True)
class Costs:
    """What the deal of the work goes by. Times are in slots that a program reads in company of others."""

    resident: int  # programs that a multiprocessor holds at once
    alone: float  # of the time a slot takes in company
    start: int  # starting a program or, where programs are persistent, what they own next
    part: int  # writing a partial result
    carry: int  # taking what the segments so far yield from one to the next
    join: int  # the combine kernel


PORTABLE = Costs(resident=2, alone=0.6, start=64, part=64, carry=128, join=0)
# A slot's keys and values take one of 132 multiprocessors 22 ns at dim 128, the combine kernel 2.3 us.
HOPPER = Costs(resident=1, alone=1.0, start=32, part=16, carry=32, join=104)


@dataclass(frozen=True)
class CacheTiles:
    """``rows`` of (query, head of the group); slots a step, a chunk and a segment, each dividing the next.

    The row tile is one height whatever the rows in use: 64 is the one height of Hopper's matrix instruction;
    of Ampere's, 16 high, two are the most whose sums fit the registers. These numbers may depend on dtype,
    head dim and device type, never on batch, lengths or the number of queries. Softmax runs on from step to
    step within a chunk; chunks are joined in order to segments, segments in order to the result. All borders
    are multiples of these constants, so that a row meets the same sums in the same order in any company.
    The Hopper kernel walks by them too; warps and stages are the portable one's.
    """

    rows: int
    block_n: int
    chunk: int
    segment: int
    num_warps: int
    num_stages: int


def cache_tiles(head_dim: int, element_bytes: int, capability: int = 80) -> CacheTiles:
    """Tiles for a head dim, element size and CUDA capability (10 * major + minor)."""
    wide = padded_head_dim(head_dim) > 128
    if element_bytes == 4:
        return CacheTiles(32, 16 if wide else 32, 256, 4096, 8, 2)
    if 90 <= capability < 120:  # 227 KB of shared memory: two programs, or one of a wide head
        return CacheTiles(64, 32, 512, 4096, 8, 4) if wide else CacheTiles(64, 64, 512, 4096, 4, 3)
    return CacheTiles(32, 32, 256, 4096, 8, 2) if wide else CacheTiles(32, 32, 256, 4096, 4, 3)  # fits 99 KB


class Unit(Enum):
    """What a program or item owns of a row tile's cache; the combine kernel joins all but whole rows."""

    CHUNK = "chunk"
    SEGMENT = "segment"
    ROW = "row"


@dataclass(frozen=True)
class Deal:
    """The unit of work, how many of them a row may have, and the programs or items that share them."""

    unit: Unit
    parts: int
    runs: int


@lru_cache(maxsize=1024)
def deal(tiles: CacheTiles, slots: int, row_tiles: int, processors: int, costs: Costs = PORTABLE) -> Deal:
    """Share out rows of up to ``slots`` slots. ``row_tiles``: those of all rows and kv heads together.

    The deal that should end first if every row is full. Lengths are not known on the host: a program finds
    its run of units from the length that it loads.
    """

    def time(share: Deal) -> float:
        waves, rest = divmod(row_tiles * share.runs, costs.resident * processors)
        waves_time = waves + (0 if rest == 0 else costs.alone if rest <= processors else 1)
        if share.unit is Unit.ROW:
            return waves_time * (costs.start + slots + (share.parts - 1) * costs.carry)
        unit_slots = tiles.chunk if share.unit is Unit.CHUNK else tiles.segment
        units_time = -(-share.parts // share.runs) * (unit_slots + costs.part)
        return waves_time * (costs.start + units_time) + share.parts + costs.join

    segments, chunks = (max(1, -(-slots // size)) for size in (tiles.segment, tiles.chunk))
    deals = [Deal(Unit.ROW, segments, 1)]
    if row_tiles >= ROWS_ONLY * processors:
        return deals[0]
    for unit, parts in ((Unit.SEGMENT, segments), (Unit.CHUNK, chunks)):
        deals += [
            Deal(unit, parts, runs)
            for runs in range(1, min(parts, costs.resident * processors) + 1)
            if parts > 1
        ]
    return min(deals, key=time)
