"""The Triton kernel of dK and dV (FlashAttention-2, Algorithm 2): programs own keys and walk the queries.

The query heads of a group are summed in turn by one program, so no atomics are needed.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from lit_eff.kernels.attention.blocks import (
    load_lse,
    load_rows,
    query_range,
    score_gradient,
    scores,
    sees,
    store_rows,
)
from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.kernels.attention.tiles import key_gradient_tiles
from lit_eff.profiling.launch import Launch


@triton.jit
def _walk_queries(
    b_dk, b_dv, b_k, b_v, o_n, b_key_document, p_q, p_dout, p_lse, p_delta, p_documents,
    stride_qt, stride_qd, stride_gt, stride_gd, stride_dt,
    start, stop, offset, queries, keys, window, score_scale, cap,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, SOFTCAP: tl.constexpr, DOCUMENTS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Add the query blocks in [start, stop) of one head to dK and dV; tiles are keys by queries."""
    for m in tl.range(start, stop, BLOCK_M):
        o_m = m + tl.arange(0, BLOCK_M)
        b_q = load_rows(p_q, m, queries, stride_qt, stride_qd, HEAD_DIM, BLOCK_M, BLOCK_D, True)
        b_s = scores(b_k, b_q, score_scale, cap, SOFTCAP)
        b_lse = load_lse(p_lse, o_m, queries)
        b_delta = tl.load(p_delta + o_m, mask=o_m < queries, other=0.0)
        b_p = tl.exp2(b_s - b_lse[None, :])
        if MASKED:
            b_document = o_m
            if DOCUMENTS:
                b_document = tl.load(p_documents + o_m.to(tl.int64) * stride_dt, mask=o_m < queries, other=0)
            m_sees = sees(
                (o_m + offset)[None, :], o_n[:, None], keys, b_document[None, :], b_key_document[:, None],
                window, CAUSAL, WINDOWED, DOCUMENTS,
            )  # fmt: skip
            b_p = tl.where(m_sees, b_p, 0.0)
        b_dout = load_rows(p_dout, m, queries, stride_gt, stride_gd, HEAD_DIM, BLOCK_M, BLOCK_D, True)
        b_dv = tl.dot(b_p.to(b_dout.dtype), b_dout, b_dv, input_precision="ieee")
        b_dp = tl.dot(b_v, tl.trans(b_dout), input_precision="ieee")
        b_ds = score_gradient(b_p, b_dp, b_delta[None, :], b_s, cap, SOFTCAP)
        b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision="ieee")
    return b_dk, b_dv


@triton.jit
def attention_key_gradient_kernel(
    p_q, p_k, p_v, p_dout, p_lse, p_delta, p_dk, p_dv, p_documents, p_key_documents, p_starts,
    stride_qb, stride_qt, stride_qh, stride_qd,
    stride_kb, stride_ks, stride_kh, stride_kd,
    stride_vb, stride_vs, stride_vh, stride_vd,
    stride_gb, stride_gt, stride_gh, stride_gd,
    stride_ob, stride_ot, stride_oh, stride_od,
    stride_db, stride_dt, stride_eb, stride_es,
    queries, keys, group, window, score_scale, cap, scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, SOFTCAP: tl.constexpr, DOCUMENTS: tl.constexpr,
    STARTS: tl.constexpr,
):  # fmt: skip
    """dK and dV (strides o) of one key block of one kv head, over the query heads of its group in turn."""
    first = tl.program_id(0) * BLOCK_N
    i_kv = tl.program_id(1).to(tl.int64)
    i_b = tl.program_id(2).to(tl.int64)
    o_n = first + tl.arange(0, BLOCK_N)
    offset = keys - queries
    if STARTS:
        offset = tl.load(p_starts + i_b).to(tl.int32)
    b_key_document = o_n
    if DOCUMENTS:
        p_documents += i_b * stride_db
        p_key_documents += i_b * stride_eb
        b_key_document = tl.load(p_key_documents + o_n.to(tl.int64) * stride_es, mask=o_n < keys, other=0)
    b_k = load_rows(
        p_k + i_b * stride_kb + i_kv * stride_kh,
        first,
        keys,
        stride_ks,
        stride_kd,
        HEAD_DIM,
        BLOCK_N,
        BLOCK_D,
        True,
    )
    b_v = load_rows(
        p_v + i_b * stride_vb + i_kv * stride_vh,
        first,
        keys,
        stride_vs,
        stride_vd,
        HEAD_DIM,
        BLOCK_N,
        BLOCK_D,
        True,
    )
    start, inner_start, inner_stop, stop = query_range(
        first, offset, queries, keys, window, BLOCK_M, BLOCK_N, CAUSAL, WINDOWED, DOCUMENTS
    )
    b_dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    b_dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for i_group in tl.range(0, group):
        i_h = i_kv * group + i_group
        i_bh = (i_b * tl.num_programs(1) * group + i_h) * queries
        p_q_head = p_q + i_b * stride_qb + i_h * stride_qh
        p_dout_head = p_dout + i_b * stride_gb + i_h * stride_gh
        if CAUSAL and not DOCUMENTS:
            b_dk, b_dv = _walk_queries(
                b_dk, b_dv, b_k, b_v, o_n, b_key_document,
                p_q_head, p_dout_head, p_lse + i_bh, p_delta + i_bh, p_documents,
                stride_qt, stride_qd, stride_gt, stride_gd, stride_dt,
                start, tl.minimum(inner_start, stop), offset, queries, keys, window, score_scale, cap,
                HEAD_DIM, BLOCK_D, BLOCK_M, CAUSAL, WINDOWED, SOFTCAP, DOCUMENTS, True,
            )  # fmt: skip
        if not DOCUMENTS:
            b_dk, b_dv = _walk_queries(
                b_dk, b_dv, b_k, b_v, o_n, b_key_document,
                p_q_head, p_dout_head, p_lse + i_bh, p_delta + i_bh, p_documents,
                stride_qt, stride_qd, stride_gt, stride_gd, stride_dt,
                inner_start, inner_stop, offset, queries, keys, window, score_scale, cap,
                HEAD_DIM, BLOCK_D, BLOCK_M, CAUSAL, WINDOWED, SOFTCAP, DOCUMENTS, False,
            )  # fmt: skip
        if WINDOWED or DOCUMENTS:
            b_dk, b_dv = _walk_queries(
                b_dk, b_dv, b_k, b_v, o_n, b_key_document,
                p_q_head, p_dout_head, p_lse + i_bh, p_delta + i_bh, p_documents,
                stride_qt, stride_qd, stride_gt, stride_gd, stride_dt,
                inner_stop, stop, offset, queries, keys, window, score_scale, cap,
                HEAD_DIM, BLOCK_D, BLOCK_M, CAUSAL, WINDOWED, SOFTCAP, DOCUMENTS, True,
            )  # fmt: skip
    o_kv = i_b * stride_ob + i_kv * stride_oh
    store_rows(p_dk + o_kv, b_dk * scale, first, keys, stride_ot, stride_od, HEAD_DIM, BLOCK_N, BLOCK_D)
    store_rows(p_dv + o_kv, b_dv, first, keys, stride_ot, stride_od, HEAD_DIM, BLOCK_N, BLOCK_D)


def key_gradient_launch(
    call: AttentionCall, gradient_arguments: dict[str, Any], dk_BSKD: Tensor, dv_BSKD: Tensor
) -> Launch:
    """The launch that fills ``dk_BSKD`` and ``dv_BSKD``, which share their strides."""
    batch, keys, kv_heads, head_dim = dk_BSKD.shape
    tiles = key_gradient_tiles(head_dim, dk_BSKD.element_size(), call.capability)
    arguments = {
        **gradient_arguments,
        **call.strides("o", dk_BSKD),
        "p_dk": dk_BSKD,
        "p_dv": dv_BSKD,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
    }
    grid = (triton.cdiv(keys, tiles.block_n), kv_heads, batch)
    return Launch(attention_key_gradient_kernel, grid, arguments, tiles.num_warps, tiles.num_stages)
