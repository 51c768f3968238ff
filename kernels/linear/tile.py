"""One tile of a skinny product: some rows of the weight times one row tile of the input.

Nothing here knows which program runs it: the linear kernel, the exit confidence and whatever keeps several
products in one launch call the same functions, hence get the same bits. The weight is the left operand, so
that its rows fill the matrix instruction however few the rows of the input. A program's warps may share the
channels out in lanes (``LANES`` of them, each ``CHUNK`` channels of every step), so that each element goes to
one warp only; lanes are added up at the end.

An element's bits depend on LANES, ROWS (which is the width of the matrix instruction), the number of channels
and, with several lanes or an int8 weight, CHUNK: all fixed by the weight. They depend neither on the rows
beside it nor on BLOCK_O nor on strides.

Shapes: N rows, C input channels, O outputs.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from lit_eff.kernels.linear.norm import normalised


@triton.jit
def along_rows(b_row, LANES: tl.constexpr):
    """A number a row, shaped to broadcast over (lanes, rows, chunk), or over (rows, chunk) of one lane."""
    return b_row[:, None] if LANES == 1 else b_row[None, :, None]


@triton.jit
def channels_of(LANES: tl.constexpr, CHUNK: tl.constexpr):
    """The channels of a step, shaped likewise."""
    o_c = tl.arange(0, LANES)[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    return o_c if LANES == 1 else o_c[:, None, :]


@triton.jit
def four_lanes_added_up(b_acc, BLOCK_O: tl.constexpr, ROWS: tl.constexpr):
    """(0 + 2) + (1 + 3), spelt out like `norm.added_up`."""
    b_pairs = tl.permute(tl.reshape(b_acc, (2, 2, BLOCK_O, ROWS)), (2, 3, 1, 0))
    b_first, b_second = tl.split(b_pairs)
    b_even, b_odd = tl.split(b_first + b_second)
    return b_even + b_odd


@triton.jit
def products(
    x, weight, scales, norm, b_mean, b_rstd, o_n, m_n, o_o, channels,
    ROWS: tl.constexpr, BLOCK_O: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Rows ``o_o`` of the weight times rows ``o_n`` of the input: (BLOCK_O, ROWS) in float32.

    ``o_o`` are any rows that exist. Rows of the input that ``m_n`` masks off are not requested and count as
    zero. EVEN says that steps fill the channels. With ``norm`` the input is normalised as it is read, by
    what `norm.statistics` found, and rounded to its own dtype; without, both statistics are None.
    """
    STEP: tl.constexpr = LANES * CHUNK
    o_c = channels_of(LANES, CHUNK)
    p_weight = weight.pointer + along_rows(o_o.to(tl.int64) * weight.stride_row, LANES)
    p_weight += o_c * weight.stride_column
    p_x = x.pointer + along_rows(o_n.to(tl.int64) * x.stride_row, LANES)
    p_x += o_c * x.stride_column
    m_x = along_rows(m_n, LANES)
    if LANES == 1:
        b_acc = tl.zeros([BLOCK_O, ROWS], tl.float32)
    else:
        b_acc = tl.zeros([LANES, BLOCK_O, ROWS], tl.float32)
    for c in tl.range(0, channels, STEP):
        m_c = c + o_c < channels
        if EVEN:
            b_weight = tl.load(p_weight)
            b_x = tl.load(p_x, mask=m_x, other=0.0)
        else:
            b_weight = tl.load(p_weight, mask=m_c, other=0.0)
            b_x = tl.load(p_x, mask=m_c & m_x, other=0.0)
        p_weight += STEP * weight.stride_column
        p_x += STEP * x.stride_column
        if b_rstd is not None:
            b_x = normalised(b_x, norm, along_rows(b_mean, LANES), along_rows(b_rstd, LANES), c + o_c, m_c)
        b_x = tl.trans(b_x) if LANES == 1 else tl.permute(b_x, 0, 2, 1)
        b_weight = b_weight.to(b_x.dtype)  # from int8 exactly
        if scales is None:
            b_acc = tl.dot(b_weight, b_x, b_acc, input_precision="ieee")
        else:
            o_group = tl.minimum(c + tl.arange(0, LANES) * CHUNK, channels - 1) // scales.size
            o_group = o_group[:, None] if LANES == 1 else o_group[:, None, None]
            p_scale = scales.pointer + along_rows(o_o.to(tl.int64) * scales.stride_row, LANES)
            b_scale = tl.load(p_scale + o_group * scales.stride_column)
            b_part = tl.dot(b_weight, b_x, input_precision="ieee")
            b_acc = tl.fma(b_part, tl.broadcast_to(b_scale, b_part.shape), b_acc)
    return b_acc if LANES == 1 else four_lanes_added_up(b_acc, BLOCK_O, ROWS)
