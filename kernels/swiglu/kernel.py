"""The kernels of SwiGLU, element by element; the backward computes the gate's sigmoid again.

Shapes: N rows, F outputs. Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lit_eff.kernels.linear.epilogue import silu
from lit_eff.profiling.launch import Launch

TILE = 2048  # elements of a tensor that a program takes
MAX_ROWS = 16  # of a tile: the addresses of more, where rows are not aligned, spill
NUM_WARPS = 4


@triton.jit
def tile_of(rows, outputs, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows (int64) and outputs of this program, and which of them exist."""
    tiles = tl.cdiv(outputs, BLOCK)
    o_n = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_f = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    return o_n[:, None], o_f[None, :], (o_n < rows)[:, None] & (o_f < outputs)[None, :]


@triton.jit(do_not_specialize=["rows"])
def swiglu_forward_kernel(
    p_gate, p_up, p_out, stride_gate, stride_up, rows, outputs, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    o_n, o_f, m_x = tile_of(rows, outputs, ROWS, BLOCK)
    b_gate = tl.load(p_gate + o_n * stride_gate + o_f, mask=m_x, other=0.0).to(tl.float32)
    b_up = tl.load(p_up + o_n * stride_up + o_f, mask=m_x, other=0.0).to(tl.float32)
    tl.store(p_out + o_n * outputs + o_f, (silu(b_gate) * b_up).to(p_out.dtype.element_ty), mask=m_x)


@triton.jit(do_not_specialize=["rows"])
def swiglu_backward_kernel(
    p_dout, p_gate, p_up, p_dgate, p_dup, stride_dout, stride_gate, stride_up, stride_dgate, stride_dup,
    rows, outputs, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """With s the gate's sigmoid: dup = dout gate s; dgate = dout up s (1 + gate (1 - s))."""
    o_n, o_f, m_x = tile_of(rows, outputs, ROWS, BLOCK)
    b_dout = tl.load(p_dout + o_n * stride_dout + o_f, mask=m_x, other=0.0).to(tl.float32)
    b_gate = tl.load(p_gate + o_n * stride_gate + o_f, mask=m_x, other=0.0).to(tl.float32)
    b_up = tl.load(p_up + o_n * stride_up + o_f, mask=m_x, other=0.0).to(tl.float32)
    b_sigmoid = 1.0 / (1.0 + tl.exp2(b_gate * -1.4426950408889634))  # log2 e
    b_dup = b_dout * silu(b_gate)
    b_dgate = b_dout * b_up * (b_sigmoid * (1.0 + b_gate * (1.0 - b_sigmoid)))
    tl.store(p_dgate + o_n * stride_dgate + o_f, b_dgate.to(p_dgate.dtype.element_ty), mask=m_x)
    tl.store(p_dup + o_n * stride_dup + o_f, b_dup.to(p_dup.dtype.element_ty), mask=m_x)


def tile_sizes(outputs: int) -> tuple[int, int]:
    """Rows and outputs of a program's tile."""
    block = min(TILE, max(16, 1 << (outputs - 1).bit_length()))
    return min(TILE // block, MAX_ROWS), block


def programs(rows: int, outputs: int) -> int:
    tile_rows, block = tile_sizes(outputs)
    return -(-rows // tile_rows) * -(-outputs // block)


def forward_launch(gate_NF: Tensor, up_NF: Tensor, out_NF: Tensor) -> Launch:
    """Fills the contiguous ``out_NF``; channels of the others lie side by side."""
    rows, outputs = out_NF.shape
    tile_rows, block = tile_sizes(outputs)
    arguments = {
        "p_gate": gate_NF,
        "p_up": up_NF,
        "p_out": out_NF,
        "stride_gate": gate_NF.stride(0),
        "stride_up": up_NF.stride(0),
        "rows": rows,
        "outputs": outputs,
        "ROWS": tile_rows,
        "BLOCK": block,
    }
    return Launch(swiglu_forward_kernel, (programs(rows, outputs),), arguments, NUM_WARPS, 1)


def backward_launch(
    dout_NF: Tensor, gate_NF: Tensor, up_NF: Tensor, dgate_NF: Tensor, dup_NF: Tensor
) -> Launch:
    """Fills ``dgate_NF`` and ``dup_NF``; channels of all lie side by side."""
    rows, outputs = dout_NF.shape
    tile_rows, block = tile_sizes(outputs)
    tensors = {"dout": dout_NF, "gate": gate_NF, "up": up_NF, "dgate": dgate_NF, "dup": dup_NF}
    arguments = {
        **{f"p_{name}": tensor for name, tensor in tensors.items()},
        **{f"stride_{name}": tensor.stride(0) for name, tensor in tensors.items()},
        "rows": rows,
        "outputs": outputs,
        "ROWS": tile_rows,
        "BLOCK": block,
    }
    return Launch(swiglu_backward_kernel, (programs(rows, outputs),), arguments, NUM_WARPS, 1)
