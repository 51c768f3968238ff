"""Attention's block sizes against HBM bytes and SRAM: both FlashAttention loop orders on one device.

SRAM of a program, in bytes, with e bytes an element and d the padded head dim:

- Queries outside (FlashAttention-2, our kernels): the Q tile stays, K and V tiles pass through the stages of
  the software pipeline; scores and output are in registers: (B_r + 2 stages B_c) d e. That is to the byte
  what our kernel takes on sm_90; on sm_80, where Q moves on to registers, it takes up to a third less.
- Keys outside (FlashAttention-1): K and V tiles stay, Q and O tiles pass: 2 (B_c + B_r) d e, where
  B_r = min(B_c, d); at most the paper's M elements if B_c = M / 4d.
"""

from __future__ import annotations

from lit_eff.kernels.attention.io_model import (
    AttentionShape,
    flash1_blocks,
    flash1_forward,
    flash2_forward,
    standard_forward,
)
from lit_eff.kernels.attention.tiles import padded_head_dim, shipped_tiles
from lit_eff.profiling.devices import Device
from lit_eff.profiling.tile_explorer import Explored, TileCost, explore

SIZES = (16, 32, 64, 128, 256, 512)


def explore_attention(shape: AttentionShape, device: Device) -> Explored:
    """The forward of ``shape`` at all :data:`SIZES`, with the pipeline stages that the kernel ships with."""
    shipped = shipped_tiles("forward", shape.head_dim, shape.element_bytes, device.capability)

    def queries_outside(block_m: int, block_n: int) -> TileCost:
        return TileCost(
            flash2_forward(shape, block_m, block_n).total,
            queries_outside_sram(shape, block_m, block_n, shipped.num_stages),
        )

    def keys_outside(block_n: int) -> TileCost:
        elements = 4 * shape.head_dim * block_n
        block_m, block_n = flash1_blocks(shape.head_dim, elements)
        sram = 2 * (block_m + block_n) * padded_head_dim(shape.head_dim) * shape.element_bytes
        return TileCost(flash1_forward(shape, elements).total, sram)

    return Explored(
        "flash attention",
        device,
        explore(queries_outside, SIZES, SIZES),
        shipped=(shipped.block_m, shipped.block_n),
        curves={"FlashAttention-1, outer block_n": {size: keys_outside(size) for size in SIZES}},
        levels={"standard attention": standard_forward(shape).total},
    )


def queries_outside_sram(shape: AttentionShape, block_m: int, block_n: int, stages: int) -> int:
    """Bytes of SRAM of one program, queries outside."""
    row = padded_head_dim(shape.head_dim) * shape.element_bytes
    return (block_m + 2 * stages * block_n) * row
