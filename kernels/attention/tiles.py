"""Block sizes by head dim and element size, chosen to fit the shared memory and registers of the target.

The choices for sm_80 fit the 99 KB of sm_86, sm_89 and sm_120 too. `tests/kernels/test_resources.py` compiles
them and checks.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tiles:
    """``block_m`` queries by ``block_n`` keys, warps a program, and stages of the software pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def padded_head_dim(head_dim: int) -> int:
    """Tensor cores multiply powers of two from 16 up; lanes beyond the head dim are masked, never loaded."""
    return max(16, 1 << (head_dim - 1).bit_length())


def _large_shared_memory(capability: int) -> bool:
    """Hopper and data-centre Blackwell give a block 227 KB; A100 163 KB; consumer parts of any year 99 KB."""
    return 90 <= capability < 120


def forward_tiles(head_dim: int, element_bytes: int, capability: int = 80) -> Tiles:
    """Tiles of the forward kernel. ``capability`` is 10 * major + minor of the CUDA device."""
    wide = padded_head_dim(head_dim) > 64
    if padded_head_dim(head_dim) > 128:
        if element_bytes == 4:
            return Tiles(32, 16, 8, 1)
        return Tiles(128, 64, 8, 2) if _large_shared_memory(capability) else Tiles(64, 32, 8, 2)
    if element_bytes == 4:
        return Tiles(64, 32, 8, 2) if wide else Tiles(64, 64, 8, 2)
    if _large_shared_memory(capability):
        return Tiles(128, 128, 8, 2) if wide else Tiles(128, 128, 8, 3)
    return Tiles(128, 64, 8, 2) if wide else Tiles(128, 64, 4, 3)


def key_gradient_tiles(head_dim: int, element_bytes: int, capability: int = 80) -> Tiles:
    """Tiles of the dK and dV kernel: a program owns ``block_n`` keys and walks ``block_m`` queries a step."""
    wide = padded_head_dim(head_dim) > 64
    if padded_head_dim(head_dim) > 128:
        if element_bytes == 4:
            return Tiles(16, 16, 8, 1)
        return Tiles(32, 64, 8, 2) if _large_shared_memory(capability) else Tiles(32, 32, 8, 2)
    if element_bytes == 4:
        return Tiles(32, 32, 8, 1) if wide else Tiles(32, 32, 4, 1)
    if _large_shared_memory(capability):
        return Tiles(32, 128, 8, 2) if wide else Tiles(64, 128, 8, 2)
    return Tiles(64, 64, 8, 2) if wide else Tiles(32, 128, 8, 2)


def query_gradient_tiles(head_dim: int, element_bytes: int, capability: int = 80) -> Tiles:
    """Tiles of the dQ kernel: a program owns ``block_m`` queries and walks ``block_n`` keys a step."""
    wide = padded_head_dim(head_dim) > 64
    if padded_head_dim(head_dim) > 128:
        if element_bytes == 4:
            return Tiles(16, 16, 8, 1)
        return Tiles(128, 32, 8, 2) if _large_shared_memory(capability) else Tiles(64, 16, 8, 2)
    if element_bytes == 4:
        return Tiles(32, 32, 8, 1) if wide else Tiles(32, 32, 4, 1)
    if _large_shared_memory(capability):
        return Tiles(128, 64, 8, 2)
    return Tiles(128, 32, 8, 2) if wide else Tiles(64, 64, 4, 2)


DELTA_BLOCK_M = 64  # queries a program of the row-sum kernel: one pass over O and dO, bound by bandwidth
