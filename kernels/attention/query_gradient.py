"""The Triton kernel of dQ (FlashAttention-2, Algorithm 2, the other way round): programs own queries.

Walking the keys a second time costs two products more than adding to dQ from the dK and dV kernel, but needs
no atomics, so dQ is the same bits every time.

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
    key_range,
    load_lse,
    load_rows,
    score_gradient,
    scores,
    sees,
    store_rows,
)
from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.kernels.attention.tiles import query_gradient_tiles
from lit_eff.profiling.launch import Launch


@triton.jit
def _walk_keys(
    b_dq, b_q, b_dout, b_lse, b_delta, o_slot, b_document, p_k, p_v, p_key_documents,
    stride_ks, stride_kd, stride_vs, stride_vd, stride_es,
    start, stop, keys, window, score_scale, cap,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, SOFTCAP: tl.constexpr, DOCUMENTS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Add the key blocks in [start, stop) to dQ; tiles are queries by keys."""
    for n in tl.range(start, stop, BLOCK_N):
        o_n = n + tl.arange(0, BLOCK_N)
        b_k = load_rows(p_k, n, keys, stride_ks, stride_kd, HEAD_DIM, BLOCK_N, BLOCK_D, MASKED)
        b_s = scores(b_q, b_k, score_scale, cap, SOFTCAP)
        b_p = tl.exp2(b_s - b_lse[:, None])
        if MASKED:
            b_key_document = o_n
            if DOCUMENTS:
                b_key_document = tl.load(
                    p_key_documents + o_n.to(tl.int64) * stride_es, mask=o_n < keys, other=0
                )
            m_sees = sees(
                o_slot[:, None], o_n[None, :], keys, b_document[:, None], b_key_document[None, :],
                window, CAUSAL, WINDOWED, DOCUMENTS,
            )  # fmt: skip
            b_p = tl.where(m_sees, b_p, 0.0)
        b_v = load_rows(p_v, n, keys, stride_vs, stride_vd, HEAD_DIM, BLOCK_N, BLOCK_D, MASKED)
        b_dp = tl.dot(b_dout, tl.trans(b_v), input_precision="ieee")
        b_ds = score_gradient(b_p, b_dp, b_delta[:, None], b_s, cap, SOFTCAP)
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision="ieee")
    return b_dq


@triton.jit
def attention_query_gradient_kernel(
    p_q, p_k, p_v, p_dout, p_lse, p_delta, p_dq, p_documents, p_key_documents, p_starts,
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
    """dQ (strides o) of one query block of one head."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    i_h = tl.program_id(1).to(tl.int64)
    i_b = tl.program_id(2).to(tl.int64)
    i_kv = i_h // group
    o_m = first + tl.arange(0, BLOCK_M)
    offset = keys - queries
    if STARTS:
        offset = tl.load(p_starts + i_b).to(tl.int32)
    b_document = o_m
    if DOCUMENTS:
        p_documents += i_b * stride_db
        p_key_documents += i_b * stride_eb
        b_document = tl.load(p_documents + o_m.to(tl.int64) * stride_dt, mask=o_m < queries, other=0)
    p_k += i_b * stride_kb + i_kv * stride_kh
    p_v += i_b * stride_vb + i_kv * stride_vh
    b_q = load_rows(
        p_q + i_b * stride_qb + i_h * stride_qh,
        first,
        queries,
        stride_qt,
        stride_qd,
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
    i_bh = (i_b * tl.num_programs(1) + i_h) * queries
    b_lse = load_lse(p_lse + i_bh, o_m, queries)
    b_delta = tl.load(p_delta + i_bh + o_m, mask=o_m < queries, other=0.0)
    start, inner_start, inner_stop, stop = key_range(
        first, offset, queries, keys, window, BLOCK_M, BLOCK_N, CAUSAL, WINDOWED, DOCUMENTS
    )
    b_dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if WINDOWED:
        b_dq = _walk_keys(
            b_dq, b_q, b_dout, b_lse, b_delta, o_m + offset, b_document, p_k, p_v, p_key_documents,
            stride_ks, stride_kd, stride_vs, stride_vd, stride_es,
            start, tl.minimum(inner_start, stop), keys, window, score_scale, cap,
            HEAD_DIM, BLOCK_D, BLOCK_N, CAUSAL, WINDOWED, SOFTCAP, DOCUMENTS, True,
        )  # fmt: skip
    if not DOCUMENTS:
        b_dq = _walk_keys(
            b_dq, b_q, b_dout, b_lse, b_delta, o_m + offset, b_document, p_k, p_v, p_key_documents,
            stride_ks, stride_kd, stride_vs, stride_vd, stride_es,
            inner_start, inner_stop, keys, window, score_scale, cap,
            HEAD_DIM, BLOCK_D, BLOCK_N, CAUSAL, WINDOWED, SOFTCAP, DOCUMENTS, False,
        )  # fmt: skip
    b_dq = _walk_keys(
        b_dq, b_q, b_dout, b_lse, b_delta, o_m + offset, b_document, p_k, p_v, p_key_documents,
        stride_ks, stride_kd, stride_vs, stride_vd, stride_es,
        inner_stop, stop, keys, window, score_scale, cap,
        HEAD_DIM, BLOCK_D, BLOCK_N, CAUSAL, WINDOWED, SOFTCAP, DOCUMENTS, True,
    )  # fmt: skip
    store_rows(
        p_dq + i_b * stride_ob + i_h * stride_oh, b_dq * scale, first, queries, stride_ot, stride_od,
        HEAD_DIM, BLOCK_M, BLOCK_D,
    )  # fmt: skip


def query_gradient_launch(call: AttentionCall, gradient_arguments: dict[str, Any], dq_BTHD: Tensor) -> Launch:
    """The launch that fills ``dq_BTHD``."""
    batch, queries, heads, head_dim = dq_BTHD.shape
    tiles = query_gradient_tiles(head_dim, dq_BTHD.element_size(), call.capability)
    arguments = {
        **gradient_arguments,
        **call.strides("o", dq_BTHD),
        "p_dq": dq_BTHD,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
    }
    grid = (triton.cdiv(queries, tiles.block_m), heads, batch)
    return Launch(attention_query_gradient_kernel, grid, arguments, tiles.num_warps, tiles.num_stages)
