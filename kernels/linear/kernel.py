"""The kernel of the skinny linear: one tile of outputs for one row tile of the input a program.

Shapes: N rows, C input channels, O outputs.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from lit_eff.kernels.linear.epilogue import activated, gated
from lit_eff.kernels.linear.norm import statistics
from lit_eff.kernels.linear.tile import products


@triton.jit
def output_tile(
    x, weight, scales, norm, p_bias, residual, out, i_n, i_o, rows, outputs, channels,
    ROWS: tl.constexpr, BLOCK_O: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr,
    CENTERED: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Output tile ``i_o`` of row tile ``i_n``, from the input's statistics to the store.

    ``outputs`` are those that are stored; with swiglu the weight has twice as many rows, gates first.
    """
    o_n = i_n * ROWS + tl.arange(0, ROWS)
    m_n = o_n < rows
    b_mean, b_rstd = None, None
    if CENTERED is not None:
        b_mean, b_rstd = statistics(x, norm.epsilon, o_n, m_n, channels, ROWS, CENTERED)
    o_weight = weight_rows(i_o, outputs, BLOCK_O, ACTIVATION)
    b_y = products(
        x, weight, scales, norm, b_mean, b_rstd, o_n, m_n, o_weight, channels,
        ROWS, BLOCK_O, LANES, CHUNK, EVEN,
    )  # fmt: skip
    if p_bias is not None:
        b_y += tl.load(p_bias + o_weight).to(tl.float32)[:, None]
    if ACTIVATION == "swiglu":
        b_y = gated(b_y, BLOCK_O // 2, ROWS)
        o_o = i_o * (BLOCK_O // 2) + tl.arange(0, BLOCK_O // 2)
    else:
        b_y = activated(b_y, ACTIVATION)
        o_o = i_o * BLOCK_O + tl.arange(0, BLOCK_O)
    m_y = (o_o < outputs)[:, None] & m_n[None, :]
    if residual is not None:
        o_residual = o_n.to(tl.int64)[None, :] * residual.stride_row + o_o[:, None] * residual.stride_column
        b_y += tl.load(residual.pointer + o_residual, mask=m_y, other=0.0).to(tl.float32)
    p_out = out.pointer + o_n.to(tl.int64)[None, :] * out.stride_row + o_o[:, None] * out.stride_column
    tl.store(p_out, b_y.to(out.pointer.dtype.element_ty), mask=m_y)


@triton.jit
def weight_rows(i_o, outputs, BLOCK_O: tl.constexpr, ACTIVATION: tl.constexpr):
    """Rows of the weight that output tile ``i_o`` takes; past the end the last one again."""
    if ACTIVATION == "swiglu":
        HALF: tl.constexpr = BLOCK_O // 2
        o_both = tl.arange(0, BLOCK_O)
        o_weight = tl.minimum(i_o * HALF + o_both % HALF, outputs - 1) + o_both // HALF * outputs
    else:
        o_weight = tl.minimum(i_o * BLOCK_O + tl.arange(0, BLOCK_O), outputs - 1)
    return o_weight


@triton.jit(do_not_specialize=["rows"])
def skinny_linear_kernel(
    x, weight, scales, norm, p_bias, residual, out, rows, outputs, channels,
    ROWS: tl.constexpr, BLOCK_O: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr,
    CENTERED: tl.constexpr, ACTIVATION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    # Row tiles of one output tile come together: they read the same weights.
    row_tiles = tl.cdiv(rows, ROWS)
    i_n = tl.program_id(0) % row_tiles
    i_o = tl.program_id(0) // row_tiles
    if EARLY:
        # The next launch may take its place on the multiprocessors, as this one did before it.
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    output_tile(
        x, weight, scales, norm, p_bias, residual, out, i_n, i_o, rows, outputs, channels,
        ROWS, BLOCK_O, LANES, CHUNK, EVEN, CENTERED, ACTIVATION,
    )  # fmt: skip
