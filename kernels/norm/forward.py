"""The forward kernel: a residual added, statistics, the normalised rows, in one pass over HBM.

Shapes: N rows, C channels. Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lit_eff.kernels.norm.call import packed, packed_rows, tile_of
from lit_eff.profiling.launch import Launch


@triton.jit
def normalised_rows(b_x, m_c, epsilon, CHANNELS: tl.constexpr, CENTERED: tl.constexpr):
    """Rows without gain and shift, and 1 / their standard deviation (or root mean square); all float32.

    ``b_x`` (rows, channels) is zero where ``m_c`` is off, and so is what comes back.
    """
    if CENTERED:
        b_mean = tl.sum(b_x, 1) / CHANNELS
        b_x = tl.where(m_c[None, :], b_x - b_mean[:, None], 0.0)
    b_rstd = tl.rsqrt(tl.sum(b_x * b_x, 1) / CHANNELS + epsilon)
    return b_x * b_rstd[:, None], b_rstd


@triton.jit(do_not_specialize=["rows"])
def norm_forward_kernel(
    p_x, p_residual, p_weight, p_bias, p_out, p_sum, stride_x, stride_residual, epsilon, rows,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, CENTERED: tl.constexpr,
):  # fmt: skip
    o_n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_c = tl.arange(0, BLOCK)
    m_c = o_c < CHANNELS
    m_x = (o_n < rows)[:, None] & m_c[None, :]
    o_out = (o_n * CHANNELS)[:, None] + o_c[None, :]
    b_x = tl.load(p_x + (o_n * stride_x)[:, None] + o_c[None, :], mask=m_x, other=0.0).to(tl.float32)
    if p_residual is not None:
        p_beside = p_residual + (o_n * stride_residual)[:, None] + o_c[None, :]
        b_x += tl.load(p_beside, mask=m_x, other=0.0).to(tl.float32)
        b_sum = b_x.to(p_sum.dtype.element_ty)
        tl.store(p_sum + o_out, b_sum, mask=m_x)
        b_x = b_sum.to(tl.float32)
    b_y, _rstd = normalised_rows(b_x, m_c, epsilon, CHANNELS, CENTERED)
    if p_weight is not None:
        b_y *= tl.load(p_weight + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    if p_bias is not None:
        b_y += tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    tl.store(p_out + o_out, b_y.to(p_out.dtype.element_ty), mask=m_x)


def forward_launch(
    x_NC: Tensor,
    residual_NC: Tensor | None,
    weight_C: Tensor | None,
    bias_C: Tensor | None,
    eps: float,
    centered: bool,
    out_NC: Tensor,
    sum_NC: Tensor,
) -> Launch:
    """What fills contiguous ``out_NC`` and, with a residual, ``sum_NC``."""
    rows, channels = x_NC.shape
    tile = tile_of(channels)
    p_x, stride_x = packed_rows(x_NC)
    p_residual, stride_residual = (None, 0) if residual_NC is None else packed_rows(residual_NC)
    arguments = {
        "p_x": p_x,
        "p_residual": p_residual,
        "p_weight": packed(weight_C),
        "p_bias": packed(bias_C),
        "p_out": out_NC,
        "p_sum": None if residual_NC is None else sum_NC,
        "stride_x": stride_x,
        "stride_residual": stride_residual,
        "epsilon": eps,
        "rows": rows,
        "CHANNELS": channels,
        "ROWS": tile.rows,
        "BLOCK": tile.block,
        "CENTERED": centered,
    }
    return Launch(norm_forward_kernel, (tile.programs(rows),), arguments, tile.forward_warps, 1)
