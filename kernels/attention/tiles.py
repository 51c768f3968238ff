"""Block sizes by device, head dim and element size: the shipped table, or tuned ones where asked for.

The table is `tile_table`; `tuning` makes a device's own and says how to switch them on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from lit_eff.kernels.attention.tile_table import TABLE

KERNELS = tuple(TABLE)
OPT_IN = "LIT_EFF_TUNED_TILES"  # "1": read the tuning cache of this user; a path: read that file


@dataclass(frozen=True)
class Tiles:
    """``block_m`` queries by ``block_n`` keys, warps a program, and stages of the software pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


_forced: dict[str, Tiles] = {}


def padded_head_dim(head_dim: int) -> int:
    """Tensor cores multiply powers of two from 16 up; lanes beyond the head dim are masked, never loaded."""
    return max(16, 1 << (head_dim - 1).bit_length())


def family(capability: int) -> int:
    """Which rows of the table serve a device: see `tile_table`. Consumer parts of any year are like sm_80."""
    return 90 if 90 <= capability < 120 else 80


def shipped_tiles(kernel: str, head_dim: int, element_bytes: int, capability: int) -> Tiles:
    """The table's entry; ``capability`` is 10 * major + minor of the CUDA device."""
    rows = TABLE[kernel][family(capability), element_bytes]
    return Tiles(*next(entry for widest, entry in rows.items() if padded_head_dim(head_dim) <= widest))


@contextmanager
def use_tiles(kernel: str, tiles: Tiles) -> Iterator[None]:
    """Launches made meanwhile take these, for every head dim: to measure a candidate."""
    before = dict(_forced)
    _forced[kernel] = tiles
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


def forced_tiles() -> tuple[tuple[str, Tiles], ...]:
    """What :func:`use_tiles` asks for."""
    return tuple(_forced.items())


@cache
def tuned_tiles() -> dict[tuple[str, int, int, int], Tiles]:
    """(kernel, padded head dim, element bytes, capability) -> tiles of this device, if `OPT_IN` asks."""
    where = os.environ.get(OPT_IN)
    if not where:
        return {}
    from lit_eff.kernels.attention.tuning import read_cache

    return read_cache(where)


def _tiles(kernel: str, head_dim: int, element_bytes: int, capability: int) -> Tiles:
    if kernel in _forced:
        return _forced[kernel]
    tuned = tuned_tiles().get((kernel, padded_head_dim(head_dim), element_bytes, capability))
    return tuned or shipped_tiles(kernel, head_dim, element_bytes, capability)


def forward_tiles(head_dim: int, element_bytes: int, capability: int = 80) -> Tiles:
    """Tiles of the forward kernel: a program owns ``block_m`` queries and walks ``block_n`` keys a step."""
    return _tiles("forward", head_dim, element_bytes, capability)


def key_gradient_tiles(head_dim: int, element_bytes: int, capability: int = 80) -> Tiles:
    """Tiles of the dK and dV kernel: a program owns ``block_n`` keys and walks ``block_m`` queries a step."""
    return _tiles("key_gradient", head_dim, element_bytes, capability)


def query_gradient_tiles(head_dim: int, element_bytes: int, capability: int = 80) -> Tiles:
    """Tiles of the dQ kernel: a program owns ``block_m`` queries and walks ``block_n`` keys a step."""
    return _tiles("query_gradient", head_dim, element_bytes, capability)


DELTA_BLOCK_M = 64  # queries a program of the row-sum kernel: one pass over O and dO, bound by bandwidth
