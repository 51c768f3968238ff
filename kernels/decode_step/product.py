"""The product that every weight of a layer goes through, and how its rows are shared out to programs.

As in `lit_eff.kernels.linear.tile` the weight is the left operand and warps take lanes of the channels. Two
things differ: tiles may hold fewer rows of the weight than they have room for, as every program takes an
equal share; and the input is read past the L1 cache, as other programs of the launch have written it.

An element's bits depend on LANES, CHUNK, ROWS and the channels; not on BLOCK_O, STAGES, the share or the
other rows.

Shapes: N rows, C input channels, O outputs.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from lit_eff.kernels.decode_step.ahead import read_ahead
from lit_eff.kernels.linear.tile import along_rows, channels_of, four_lanes_added_up


@triton.jit
def share(i, units, programs):
    """Units [first, last) of program ``i``: equal shares, none one unit larger than another by more."""
    return i * units // programs, (i + 1) * units // programs


@triton.jit
def product(
    p_x, p_weight, o_n, m_n, o_o, m_o, ahead, is_last,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, BLOCK_O: tl.constexpr, LANES: tl.constexpr,
    CHUNK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Rows ``o_o`` of the weight times rows ``o_n`` of the input: (BLOCK_O, ROWS) in float32.

    Rows that a mask leaves out are not requested and count as zero. Where this tile ``is_last``, the spans
    ``ahead`` are requested as soon as its own loads have come.
    """
    STEP: tl.constexpr = LANES * CHUNK
    o_c = channels_of(LANES, CHUNK)
    p_weight += along_rows(o_o.to(tl.int64) * CHANNELS, LANES) + o_c
    p_x += along_rows(o_n.to(tl.int64) * CHANNELS, LANES) + o_c
    m_weight = along_rows(m_o, LANES)
    m_x = along_rows(m_n, LANES)
    if LANES == 1:
        b_acc = tl.zeros([BLOCK_O, ROWS], tl.float32)
    else:
        b_acc = tl.zeros([LANES, BLOCK_O, ROWS], tl.float32)
    for c in tl.range(0, CHANNELS, STEP, num_stages=STAGES):
        if CHANNELS % STEP == 0:
            b_weight = tl.load(p_weight, mask=m_weight, other=0.0)
            b_x = tl.load(p_x, mask=m_x, other=0.0, cache_modifier=".cg")
        else:
            m_c = c + o_c < CHANNELS
            b_weight = tl.load(p_weight, mask=m_weight & m_c, other=0.0)
            b_x = tl.load(p_x, mask=m_x & m_c, other=0.0, cache_modifier=".cg")
        p_weight += STEP
        p_x += STEP
        b_x = tl.trans(b_x) if LANES == 1 else tl.permute(b_x, 0, 2, 1)
        b_acc = tl.dot(b_weight, b_x, b_acc, input_precision="ieee")
    read_ahead(ahead, is_last)
    return b_acc if LANES == 1 else four_lanes_added_up(b_acc, BLOCK_O, ROWS)


@triton.jit
def halves_of(b_y, HALF: tl.constexpr, ROWS: tl.constexpr):
    """The first HALF rows of a tile and the others."""
    return tl.split(tl.permute(tl.reshape(b_y, (2, HALF, ROWS)), (1, 2, 0)))
