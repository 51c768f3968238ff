"""Where a tile's documents lie, so that the attention kernels visit no block outside them.

Packed rows hold one document after another, as a rule with ids that never decrease (padding, -1, at the end:
ids count as unsigned here). For each tile of rows a kernel finds the first and the last row of the other side
whose id lies between the tile's least and greatest. Whatever the order of the ids, nothing seen lies outside;
where they are ordered, little else lies inside. All on the device: no host waits.

Shapes: B batch. Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lit_eff.profiling.launch import Launch
from lit_eff.profiling.replay import workspace

BLOCK_OTHER = 1024


@triton.jit
def document_ranges_kernel(
    own, stride_own_b, stride_own, other, stride_other_b, stride_other, p_ranges, own_rows, other_rows,
    BLOCK: tl.constexpr, BLOCK_OTHER: tl.constexpr,
):  # fmt: skip
    i_tile = tl.program_id(0)
    i_b = tl.program_id(1).to(tl.int64)
    # Rows past the end repeat the last one, which changes neither the least nor the greatest id.
    o_own = tl.minimum(i_tile * BLOCK + tl.arange(0, BLOCK), own_rows - 1).to(tl.int64)
    b_own = tl.load(own + i_b * stride_own_b + o_own * stride_own).to(tl.int32).to(tl.uint32, bitcast=True)
    least, greatest = tl.min(b_own, 0), tl.max(b_own, 0)
    b_first = tl.full([BLOCK_OTHER], 2**31 - 1, tl.int32)
    b_stop = tl.zeros([BLOCK_OTHER], tl.int32)
    b_count = tl.zeros([BLOCK_OTHER], tl.int32)
    for n in tl.range(0, other_rows, BLOCK_OTHER):
        o_n = n + tl.arange(0, BLOCK_OTHER)
        b_other = tl.load(
            other + i_b * stride_other_b + o_n.to(tl.int64) * stride_other, mask=o_n < other_rows, other=0
        )
        b_other = b_other.to(tl.int32).to(tl.uint32, bitcast=True)
        m_between = (o_n < other_rows) & (b_other >= least) & (b_other <= greatest)
        b_first = tl.where(m_between, tl.minimum(b_first, o_n), b_first)
        b_stop = tl.where(m_between, o_n + 1, b_stop)
        b_count += m_between.to(tl.int32)
    stop = tl.max(b_stop, 0)
    first = tl.minimum(tl.min(b_first, 0), stop)
    is_whole = (least == greatest) & (tl.sum(b_count, 0) == stop - first)
    p_range = p_ranges + (i_b * tl.num_programs(0) + i_tile) * 3
    tl.store(p_range, first)
    tl.store(p_range + 1, stop)
    tl.store(p_range + 2, is_whole.to(tl.int32))


def document_ranges(own: Tensor, other: Tensor, block: int) -> tuple[Launch, Tensor]:
    """For each tile of ``block`` rows of ``own``, where in ``other`` its documents lie.

    Args:
        own, other: integer ids, (B, rows), neither of them without rows.

    Returns:
        The launch, and the int32 tensor (B, tiles, 3) that it fills: first row, last row + 1, and 1 if the
        tile and all rows between hold one document only, else 0.
    """
    batch, own_rows = own.shape
    tiles = triton.cdiv(own_rows, block)
    ranges = workspace((batch, tiles, 3), torch.int32, own.device)
    arguments = {
        "own": own,
        "stride_own_b": own.stride(0),
        "stride_own": own.stride(1),
        "other": other,
        "stride_other_b": other.stride(0),
        "stride_other": other.stride(1),
        "p_ranges": ranges,
        "own_rows": own_rows,
        "other_rows": other.shape[1],
        "BLOCK": block,
        "BLOCK_OTHER": BLOCK_OTHER,
    }
    return Launch(document_ranges_kernel, (tiles, batch), arguments), ranges
