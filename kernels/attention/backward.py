"""The backward pass: recompute the weights from the log-sum-exp (FlashAttention-2, Dao 2023, Algorithm 2).

Three launches and no atomics, so gradients are the same bits every time: row sums delta = rowsum(dO * O),
then dK and dV by programs that own keys, then dQ by programs that own queries. With P the weights,
dV = P^T dO, dS = P * (dO V^T - delta), dQ = dS K, dK = dS^T Q. A gradient of the log-sum-exp itself (dLSE)
enters as delta - dLSE.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lit_eff.kernels.attention.blocks import load_rows
from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.kernels.attention.key_gradient import key_gradient_launch
from lit_eff.kernels.attention.query_gradient import query_gradient_launch
from lit_eff.kernels.attention.tiles import DELTA_BLOCK_M, padded_head_dim
from lit_eff.profiling.launch import Launch


@triton.jit
def attention_delta_kernel(
    p_out, p_dout, p_dlse, p_delta,
    stride_ob, stride_ot, stride_oh, stride_od,
    stride_gb, stride_gt, stride_gh, stride_gd,
    queries,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, LSE_GRADIENT: tl.constexpr,
):  # fmt: skip
    """delta_BHT = rowsum(dO * O) - dLSE."""
    i_h = tl.program_id(1).to(tl.int64)
    i_b = tl.program_id(2).to(tl.int64)
    first = tl.program_id(0) * BLOCK_M
    o_m = first + tl.arange(0, BLOCK_M)
    m_m = o_m < queries
    b_out = load_rows(
        p_out + i_b * stride_ob + i_h * stride_oh,
        first,
        queries,
        stride_ot,
        stride_od,
        HEAD_DIM,
        BLOCK_M,
        BLOCK_D,
        True,
    )
    b_dout = load_rows(
        p_dout + i_b * stride_gb + i_h * stride_gh,
        first,
        queries,
        stride_gt,
        stride_gd,
        HEAD_DIM,
        BLOCK_M,
        BLOCK_D,
        True,
    )
    b_delta = tl.sum(b_out.to(tl.float32) * b_dout.to(tl.float32), 1)
    i_row = (i_b * tl.num_programs(1) + i_h) * queries + o_m
    if LSE_GRADIENT:
        b_delta -= tl.load(p_dlse + i_row, mask=m_m, other=0.0)
    tl.store(p_delta + i_row, b_delta, mask=m_m)


def backward_launches(
    call: AttentionCall,
    out_BTHD: Tensor,
    lse_BHT: Tensor,
    dout_BTHD: Tensor,
    dlse_BHT: Tensor | None,
    delta_BHT: Tensor,
    dq_BTHD: Tensor,
    dk_BSKD: Tensor,
    dv_BSKD: Tensor,
) -> list[Launch]:
    """The launches, in order, that fill ``delta_BHT`` (scratch, float32), ``dq``, ``dk`` and ``dv``.

    ``lse``, ``dlse`` and ``delta`` are contiguous float32; ``dk`` and ``dv`` share their strides.
    """
    batch, queries, heads, head_dim = call.q_BTHD.shape
    delta_arguments = {
        "p_out": out_BTHD,
        "p_dout": dout_BTHD,
        "p_dlse": dlse_BHT,
        "p_delta": delta_BHT,
        **call.strides("o", out_BTHD),
        **call.strides("g", dout_BTHD),
        "queries": queries,
        "HEAD_DIM": head_dim,
        "BLOCK_D": padded_head_dim(head_dim),
        "BLOCK_M": DELTA_BLOCK_M,
        "LSE_GRADIENT": dlse_BHT is not None,
    }
    grid = (triton.cdiv(queries, DELTA_BLOCK_M), heads, batch)
    gradient_arguments = {
        **call.arguments(),
        **call.strides("g", dout_BTHD),
        "p_dout": dout_BTHD,
        "p_lse": lse_BHT,
        "p_delta": delta_BHT,
        "scale": call.scale,
    }
    return [
        Launch(attention_delta_kernel, grid, delta_arguments),
        key_gradient_launch(call, gradient_arguments, dk_BSKD, dv_BSKD),
        query_gradient_launch(call, gradient_arguments, dq_BTHD),
    ]
