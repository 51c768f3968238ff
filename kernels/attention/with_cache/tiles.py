"""The constants of attention on a cache. All but the stages belong to the definition of the result's bits."""

from __future__ import annotations

from dataclasses import dataclass

from lit_eff.kernels.attention.tiles import padded_head_dim


@dataclass(frozen=True)
class CacheTiles:
    """``rows`` of (query, head of the group) by ``block_n`` slots a step; partial results every ``chunk`` slots.

    The row tile is one height whatever the rows in use: 64 is the one height of Hopper's matrix instruction,
    and four of Ampere's. These numbers may depend on dtype, head dim and device type, never on batch, lengths
    or the number of queries: borders of steps and chunks lie at multiples of them, so a row meets the same
    sums in the same order in any company.
    """

    rows: int
    block_n: int
    chunk: int
    num_warps: int
    num_stages: int


def cache_tiles(head_dim: int, element_bytes: int, capability: int = 80) -> CacheTiles:
    """Tiles for a head dim, element size and CUDA capability (10 * major + minor)."""
    width = padded_head_dim(head_dim)
    if element_bytes == 4:
        return CacheTiles(64, 32 if width <= 128 else 16, 512, 8, 2)
    if 90 <= capability < 120:  # 227 KB of shared memory
        return CacheTiles(64, 64, 1024, 4, 3 if width <= 128 else 2)
    return CacheTiles(64, 64 if width <= 128 else 32, 1024, 4, 2)  # fits 99 KB
