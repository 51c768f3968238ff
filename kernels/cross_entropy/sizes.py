"""How many rows of logits are held at a time, and how a program takes a row."""

from __future__ import annotations

from dataclasses import dataclass

# Bytes of logits held at a time, for one exit and for several. More of them mean fewer additions to the
# gradient of the output matrix, each of which reads and writes all of it.
LOGITS_BYTES = (284_000_000, 568_000_000)
ROW_MULTIPLE = 128  # rows of a matrix product's tile
SCALE_BLOCK = 8192  # elements that a program scales at a time,
SCALE_PROGRAMS = 1024  # of so many at the most
STRIDE_MULTIPLE = 64  # elements: rows start where vectors of 16 bytes and the copy engine may


@dataclass(frozen=True)
class RowTiles:
    """Columns that a program takes at a time, how often it does so ahead, warps; programs a multiprocessor.

    Programs go from row to row: there are few, so that the rows under way fit the L2 cache.
    """

    block: int
    ahead: int
    warps: int
    programs: int


def row_tiles(columns: int) -> RowTiles:
    """By the row's length: blocks of 16 bytes a thread in half precision, 35 MB of rows under way at most."""
    if columns >= 65_536:
        return RowTiles(block=4096, ahead=4, warps=16, programs=1)
    if columns >= 16_384:
        return RowTiles(block=4096, ahead=2, warps=16, programs=2)
    if columns >= 2_048:
        return RowTiles(block=2048, ahead=1, warps=8, programs=4)
    return RowTiles(block=512, ahead=1, warps=2, programs=16)


def padded(columns: int) -> int:
    """Elements from one row of logits to the next."""
    return -(-columns // STRIDE_MULTIPLE) * STRIDE_MULTIPLE


def chunk_rows(tokens: int, row_bytes: int, exits: int) -> int:
    """Rows of the chunks: as many as fit, in multiples of `ROW_MULTIPLE`, and the last hardly smaller."""
    limit = LOGITS_BYTES[exits > 1]
    most = max(limit // (row_bytes * ROW_MULTIPLE), 1) * ROW_MULTIPLE
    if tokens <= most:
        return tokens
    chunks = -(-tokens // most)
    return -(-tokens // (chunks * ROW_MULTIPLE)) * ROW_MULTIPLE


def scale_programs(elements: int) -> int:
    return min(SCALE_PROGRAMS, -(-elements // SCALE_BLOCK))
