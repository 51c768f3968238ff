"""Tiles of rows of a (B, rows, heads, D) tensor, loaded and stored by the two matrix products.

Prefixes: p_ pointer, o_ offset, m_ mask, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def head_rows(
    p_base, stride_row, stride_d, first, rows,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Pointers to, and which lanes exist of, the (BLOCK, BLOCK_D) tile of one head from row ``first``.

    Offsets within a tile are 32-bit (see `call.addressable`): wider ones would cost registers.
    """
    o_row = tl.arange(0, BLOCK)
    o_d = tl.arange(0, BLOCK_D)
    p_first = p_base + tl.cast(first, tl.int64) * stride_row
    p_tile = p_first + (o_row[:, None] * stride_row + o_d[None, :] * stride_d)
    return p_tile, (first + o_row < rows)[:, None] & (o_d < HEAD_DIM)[None, :]


def strides(letter: str, tensor: Tensor) -> dict[str, int]:
    """Element strides under the kernels' argument names: batch, rows, head, dim."""
    return {f"stride_{letter}{axis}": stride for axis, stride in zip("brhd", tensor.stride(), strict=True)}
