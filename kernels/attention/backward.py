"""The backward pass: recompute the weights from the log-sum-exp (FlashAttention-2, Dao 2023, Algorithm 2).

No atomics, so gradients are the same bits every time: row sums delta = rowsum(dO * O), then dK and dV by
programs that own keys, then dQ by programs that own queries. With P the weights and M the dropout mask over
1 - p, dV = (P M)^T dO, dS = P * (dO V^T M - delta), dQ = dS K, dK = dS^T Q. A gradient of the log-sum-exp
itself (dLSE) enters as delta - dLSE; a sink's is -sum(P_sink * delta), which `operator` takes from delta.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lit_eff.kernels.attention.blocks import load_rows, row_of, rows_of, statistic_of
from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.kernels.attention.key_gradient import key_gradient_launches
from lit_eff.kernels.attention.query_gradient import query_gradient_launches
from lit_eff.kernels.attention.tiles import DELTA_BLOCK_M, padded_head_dim
from lit_eff.profiling.launch import Launch


@triton.jit
def attention_delta_kernel(
    out, dout, dlse, delta, sizes,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """delta_BHT = rowsum(dO * O) - dLSE."""
    first = tl.program_id(0) * BLOCK_M
    i_h = tl.program_id(1).to(tl.int64)
    i_b = tl.program_id(2).to(tl.int64)
    row = row_of(sizes, i_b)
    o_m = first + tl.arange(0, BLOCK_M)
    m_m = o_m < row.queries
    out = rows_of(out, i_b, i_h, row.first_query)
    dout = rows_of(dout, i_b, i_h, row.first_query)
    b_out = load_rows(out, first, row.queries, HEAD_DIM, BLOCK_M, BLOCK_D, True)
    b_dout = load_rows(dout, first, row.queries, HEAD_DIM, BLOCK_M, BLOCK_D, True)
    b_delta = tl.sum(b_out.to(tl.float32) * b_dout.to(tl.float32), 1)
    if dlse is not None:
        b_delta -= tl.load(statistic_of(dlse, i_b, i_h, row.first_query) + o_m, mask=m_m, other=0.0)
    tl.store(statistic_of(delta, i_b, i_h, row.first_query) + o_m, b_delta, mask=m_m)


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
    """The launches, in order, that fill ``delta_BHT`` (float32), ``dq``, ``dk`` and ``dv``.

    ``lse``, ``dlse`` and ``delta`` are contiguous float32.
    """
    delta_arguments = {
        "out": call.rows(out_BTHD),
        "dout": call.rows(dout_BTHD),
        "dlse": None if dlse_BHT is None else call.statistic(dlse_BHT),
        "delta": call.statistic(delta_BHT),
        "sizes": call.sizes()._replace(starts=None),
        "HEAD_DIM": call.head_dim,
        "BLOCK_D": padded_head_dim(call.head_dim),
        "BLOCK_M": DELTA_BLOCK_M,
    }
    grid = (triton.cdiv(call.queries, DELTA_BLOCK_M), call.heads, call.batch)
    gradient_arguments = {
        "dout": call.rows(dout_BTHD),
        "lse": call.statistic(lse_BHT),
        "delta": call.statistic(delta_BHT),
        "scale": call.scale,
    }
    return [
        Launch(attention_delta_kernel, grid, delta_arguments),
        *key_gradient_launches(call, gradient_arguments, dk_BSKD, dv_BSKD),
        *query_gradient_launches(call, gradient_arguments, dq_BTHD),
    ]
