"""Block sizes of the standard kernels: one choice for every device, since HBM bounds all three."""

from __future__ import annotations

from lit_eff.kernels.attention.tiles import Tiles, padded_head_dim

SOFTMAX_ELEMENTS = 8192  # of one row tile: 64 registers a thread
SOFTMAX_WARPS = 4


def product_tiles(head_dim: int, element_bytes: int) -> Tiles:
    """Tiles of the two matrix products: a program owns ``block_m`` queries and walks ``block_n`` keys a step.

    They fit the 99 KB of shared memory that every device from sm_80 on gives a block.
    """
    padded = padded_head_dim(head_dim)
    if element_bytes == 4:
        return Tiles(32, 32, 8, 1)
    if padded <= 64:
        return Tiles(128, 64, 8, 2)
    return Tiles(64, 64, 8, 2 if padded <= 128 else 1)


def softmax_tiles(keys: int) -> tuple[int, int]:
    """(rows, columns) of the softmax kernel: a whole row where one fits, and then several short rows."""
    columns = min(1 << max(keys - 1, 0).bit_length(), SOFTMAX_ELEMENTS)
    columns = max(columns, 16)
    return SOFTMAX_ELEMENTS // columns, columns
