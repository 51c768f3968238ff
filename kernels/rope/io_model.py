"""The exact bytes that rotation and cache write request from HBM, program by program: pure arithmetic.

A lane that a mask switches off is not requested. Tensor names are the kernel's arguments without ``p_``.
Sectors are those of views of one projection, heads of queries, keys and values side by side.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from lit_eff.kernels.rope.call import block_heads
from lit_eff.profiling.modelled import SECTOR_BYTES, STATISTIC_BYTES, Traffic, sector_bytes, whole_sectors


class Token(NamedTuple):
    """One that has a slot: where it stands in (B, T), in the rotary tables, the cache and the page table."""

    place: int
    position: int
    slot: int  # of all of a layer's
    page: int


@dataclass(frozen=True)
class Places:
    """A call's places and which of them hold tokens. Bytes are those of an element, 0 where there is no such
    tensor; of ``position_bytes`` the tensor of positions.
    """

    batch: int
    queries: int
    tokens: tuple[Token, ...]
    rotary_dim: int
    length_bytes: int = 8
    query_length_bytes: int = 0
    position_bytes: int = 0
    page_bytes: int = 0

    @property
    def count(self) -> int:
        return self.batch * self.queries

    @property
    def row_bytes(self) -> int:
        """Of one table's angles of a position."""
        return self.rotary_dim // 2 * STATISTIC_BYTES

    @property
    def index_sectors(self) -> int:
        """Of all that says where tokens go."""
        lengths = whole_sectors(self.batch * self.length_bytes, self.batch * self.query_length_bytes)
        positions = entries((token.place for token in self.tokens), self.position_bytes)
        return lengths + positions + self.page_sectors

    @property
    def page_sectors(self) -> int:
        return entries((token.page for token in self.tokens), self.page_bytes)

    @property
    def angle_sectors(self) -> int:
        """Of both tables."""
        return 2 * entries((token.position for token in self.tokens), self.row_bytes)


def entries(indices: Iterable[int], size: int) -> int:
    """Bytes of the sectors that entries of ``size`` bytes touch."""
    return sector_bytes((index * size, (index + 1) * size) for index in indices)


@dataclass(frozen=True)
class RopeShape:
    """One call. Bytes are those of an element, 0 where there is no such tensor."""

    places: Places
    heads: int
    kv_heads: int
    head_dim: int
    element_bytes: int = 2
    gain_bytes: int = 0


def rope_traffic(shape: RopeShape) -> Traffic:
    """Requests of the launch. Positions are read of those that ``query_lengths`` lets be tokens alone."""
    block = block_heads(shape.heads, shape.head_dim)
    q_tiles, kv_tiles = (-(-heads // block) for heads in (shape.heads, shape.kv_heads))
    places, programs = shape.places, q_tiles + 2 * kv_tiles
    count, tokens = places.count, len(places.tokens)
    row = shape.head_dim * shape.element_bytes
    angles = tokens * (q_tiles + kv_tiles) * places.row_bytes
    reads = {
        "lengths": count * programs * places.length_bytes,
        "query_lengths": count * programs * places.query_length_bytes,
        "positions": tokens * programs * places.position_bytes,
        "page_table": tokens * 2 * kv_tiles * places.page_bytes,
        "q_gain": count * q_tiles * shape.head_dim * shape.gain_bytes,
        "k_gain": count * kv_tiles * shape.head_dim * shape.gain_bytes,
        "cos": angles,
        "sin": angles,
        "q": tokens * shape.heads * row,
        "k": tokens * shape.kv_heads * row,
        "v": tokens * shape.kv_heads * row,
    }
    writes = {
        "out": count * shape.heads * row,
        "k_cache": tokens * shape.kv_heads * row,
        "v_cache": tokens * shape.kv_heads * row,
    }
    projected = entries((token.place for token in places.tokens), (shape.heads + 2 * shape.kv_heads) * row)
    gains = 2 * whole_sectors(shape.head_dim * shape.gain_bytes)
    sectors = places.index_sectors + places.angle_sectors + projected + gains
    # A single place's queries, keys and values are tensors apart, and may share a sector.
    shared = count == 1 and row % SECTOR_BYTES != 0
    return Traffic(reads, writes, sectors=None if shared else sectors)
