"""The backward kernel: the gradients of rows, residual, gain and shift, the statistics found again.

With xhat the normalised row, g = dy * gain and <.> the mean over a row: dx = (g - <g> - xhat <g xhat>) /
deviation, without <g> for RMSNorm; dgain and dshift are the sums of dy * xhat and dy over rows (Ba et al.;
Zhang & Sennrich). Each program adds up its own rows; a second reduction adds up the programs, both in a
fixed order, so that gradients are the same bits from run to run.

Shapes: N rows, C channels, P programs. Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lit_eff.kernels.norm.call import packed, packed_rows, tile_of
from lit_eff.kernels.norm.forward import normalised_rows
from lit_eff.profiling.launch import Launch


@triton.jit(do_not_specialize=["rows", "tiles"])
def norm_backward_kernel(
    p_dout, p_dsum, p_x, p_weight, p_dx, p_dresidual, p_dgain, p_dshift,
    stride_dout, stride_dsum, stride_x, epsilon, rows, tiles,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, CENTERED: tl.constexpr,
):  # fmt: skip
    i_p = tl.program_id(0)
    each = tl.cdiv(tiles, tl.num_programs(0))
    o_c = tl.arange(0, BLOCK)
    m_c = o_c < CHANNELS
    b_gain = tl.full([BLOCK], 1.0, tl.float32)
    if p_weight is not None:
        b_gain = tl.load(p_weight + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_dgain = tl.zeros([ROWS, BLOCK], tl.float32)
    b_dshift = tl.zeros([ROWS, BLOCK], tl.float32)
    for i_tile in tl.range(i_p * each, tl.minimum((i_p + 1) * each, tiles)):
        o_n = (i_tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        m_x = (o_n < rows)[:, None] & m_c[None, :]
        o_out = (o_n * CHANNELS)[:, None] + o_c[None, :]
        b_x = tl.load(p_x + (o_n * stride_x)[:, None] + o_c[None, :], mask=m_x, other=0.0).to(tl.float32)
        p_dy = p_dout + (o_n * stride_dout)[:, None] + o_c[None, :]
        b_dy = tl.load(p_dy, mask=m_x, other=0.0).to(tl.float32)
        b_xhat, b_rstd = normalised_rows(b_x, m_c, epsilon, CHANNELS, CENTERED)
        if p_dgain is not None:
            b_dgain += b_dy * b_xhat
        if p_dshift is not None:
            b_dshift += b_dy
        b_g = b_dy * b_gain[None, :]
        b_dx = b_g - b_xhat * (tl.sum(b_g * b_xhat, 1) / CHANNELS)[:, None]
        if CENTERED:
            b_dx -= (tl.sum(b_g, 1) / CHANNELS)[:, None]
        b_dx *= b_rstd[:, None]
        if p_dsum is not None:
            p_beside = p_dsum + (o_n * stride_dsum)[:, None] + o_c[None, :]
            b_dx += tl.load(p_beside, mask=m_x, other=0.0).to(tl.float32)
        tl.store(p_dx + o_out, b_dx.to(p_dx.dtype.element_ty), mask=m_x)
        if p_dresidual is not None:
            tl.store(p_dresidual + o_out, b_dx.to(p_dresidual.dtype.element_ty), mask=m_x)
    o_partial = i_p.to(tl.int64) * CHANNELS + o_c
    if p_dgain is not None:
        tl.store(p_dgain + o_partial, tl.sum(b_dgain, 0), mask=m_c)
    if p_dshift is not None:
        tl.store(p_dshift + o_partial, tl.sum(b_dshift, 0), mask=m_c)


def backward_launch(
    dout_NC: Tensor,
    dsum_NC: Tensor | None,
    x_NC: Tensor,
    weight_C: Tensor | None,
    eps: float,
    centered: bool,
    dx_NC: Tensor,
    dresidual_NC: Tensor | None,
    dgain_PC: Tensor | None,
    dshift_PC: Tensor | None,
    programs: int,
) -> Launch:
    """What fills the contiguous gradients; of gain and shift each program's part (float32)."""
    rows, channels = x_NC.shape
    tile = tile_of(channels)
    p_x, stride_x = packed_rows(x_NC)
    p_dout, stride_dout = packed_rows(dout_NC)
    p_dsum, stride_dsum = (None, 0) if dsum_NC is None else packed_rows(dsum_NC)
    arguments = {
        "p_dout": p_dout,
        "p_dsum": p_dsum,
        "p_x": p_x,
        "p_weight": packed(weight_C),
        "p_dx": dx_NC,
        "p_dresidual": dresidual_NC,
        "p_dgain": dgain_PC,
        "p_dshift": dshift_PC,
        "stride_dout": stride_dout,
        "stride_dsum": stride_dsum,
        "stride_x": stride_x,
        "epsilon": eps,
        "rows": rows,
        "tiles": tile.programs(rows),
        "CHANNELS": channels,
        "ROWS": tile.rows,
        "BLOCK": tile.block,
        "CENTERED": centered,
    }
    return Launch(norm_backward_kernel, (programs,), arguments, tile.backward_warps, 1)
