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
    head_of,
    keeps,
    load_ids,
    load_lse,
    load_rows,
    query_range,
    row_of,
    rows_of,
    score_gradient,
    scores,
    sees,
    statistic_of,
    store_rows,
    with_bias,
)
from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.kernels.attention.tiles import key_gradient_tiles
from lit_eff.profiling.launch import Launch


@triton.jit
def _walk_queries(
    b_dk, b_dv, b_k, b_v, q, dout, p_lse, p_delta, o_n, b_key_document, start, stop, head, rule, documents,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    CAUSAL: tl.constexpr, ROUNDS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add the query blocks in [start, stop) of one head to dK and dV; tiles are keys by queries."""
    for m in tl.range(start, stop, BLOCK_M):
        o_m = m + tl.arange(0, BLOCK_M)
        b_q = load_rows(q, m, head.queries, HEAD_DIM, BLOCK_M, BLOCK_D, True)
        b_capped = scores(b_k, b_q, rule)
        b_s = with_bias(b_capped, o_m[None, :], o_n[:, None], head, rule)
        b_lse = load_lse(p_lse, o_m, head.queries)
        b_delta = tl.load(p_delta + o_m, mask=o_m < head.queries, other=0.0)
        b_p = tl.exp2(b_s - b_lse[None, :])
        if MASKED:
            b_document = None
            if documents is not None:
                b_document = load_ids(
                    documents.query_ids, documents.stride_qb, documents.stride_qt, head.i_b, o_m, head.queries
                )[None, :]
            m_sees = sees(o_m[None, :], o_n[:, None], b_document, b_key_document, head, rule, CAUSAL)
            b_p = tl.where(m_sees, b_p, 0.0)
        b_dout = load_rows(dout, m, head.queries, HEAD_DIM, BLOCK_M, BLOCK_D, True)
        b_dp = tl.dot(b_v, tl.trans(b_dout), input_precision="ieee")
        b_kept = b_p
        if rule.seed is not None:
            m_keeps = keeps(o_m[None, :], o_n[:, None], head, rule, ROUNDS)
            b_kept = tl.where(m_keeps, b_p, 0.0)
            b_dp = tl.where(m_keeps, b_dp * rule.keep_scale, 0.0)
        b_dv = tl.dot(b_kept.to(b_dout.dtype), b_dout, b_dv, input_precision="ieee")
        b_ds = score_gradient(b_p, b_dp, b_delta[None, :], b_capped, rule)
        b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision="ieee")
    return b_dk, b_dv


@triton.jit
def attention_key_gradient_kernel(
    q, k, v, dout, lse, delta, dk, dv, scale, sizes, rule, documents,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """dK and dV of one key block of one kv head, over the query heads of its group in turn."""
    first = tl.program_id(0) * BLOCK_N
    i_kv = tl.program_id(1).to(tl.int64)
    i_b = tl.program_id(2).to(tl.int64)
    row = row_of(sizes, i_b)
    o_n = first + tl.arange(0, BLOCK_N)
    b_key_document = None
    if documents is not None:
        b_key_document = load_ids(
            documents.key_ids, documents.stride_kb, documents.stride_ks, i_b, o_n, row.keys
        )[:, None]
    b_k = load_rows(rows_of(k, i_b, i_kv, row.first_key), first, row.keys, HEAD_DIM, BLOCK_N, BLOCK_D, True)
    b_v = load_rows(rows_of(v, i_b, i_kv, row.first_key), first, row.keys, HEAD_DIM, BLOCK_N, BLOCK_D, True)
    start, inner_start, inner_stop, stop = query_range(first, row, rule, documents, BLOCK_M, BLOCK_N, CAUSAL)
    b_dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    b_dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    # What needs masks: before the inner blocks if causal, after them too where a window or a document ends.
    EDGES: tl.constexpr = (1 if CAUSAL else 0) if rule.window is None and documents is None else 2
    for i_group in tl.range(0, sizes.group):
        i_h = i_kv * sizes.group + i_group
        head = head_of(row, rule, i_h)
        q_head = rows_of(q, i_b, i_h, row.first_query)
        dout_head = rows_of(dout, i_b, i_h, row.first_query)
        p_lse = statistic_of(lse, i_b, i_h, row.first_query)
        p_delta = statistic_of(delta, i_b, i_h, row.first_query)
        b_dk, b_dv = _walk_queries(
            b_dk, b_dv, b_k, b_v, q_head, dout_head, p_lse, p_delta, o_n, b_key_document,
            inner_start, inner_stop, head, rule, documents,
            HEAD_DIM, BLOCK_D, BLOCK_M, CAUSAL, ROUNDS, False,
        )  # fmt: skip
        for edge in tl.range(0, EDGES):
            b_dk, b_dv = _walk_queries(
                b_dk, b_dv, b_k, b_v, q_head, dout_head, p_lse, p_delta, o_n, b_key_document,
                tl.where(edge == 0, start, inner_stop),
                tl.where(edge == 0, tl.minimum(inner_start, stop), stop), head, rule, documents,
                HEAD_DIM, BLOCK_D, BLOCK_M, CAUSAL, ROUNDS, True,
            )  # fmt: skip
    dk_head = rows_of(dk, i_b, i_kv, row.first_key)
    dv_head = rows_of(dv, i_b, i_kv, row.first_key)
    store_rows(dk_head, b_dk * scale, first, row.keys, HEAD_DIM, BLOCK_N, BLOCK_D)
    if rule.seed is not None:
        b_dv *= rule.keep_scale
    store_rows(dv_head, b_dv, first, row.keys, HEAD_DIM, BLOCK_N, BLOCK_D)


def key_gradient_launches(
    call: AttentionCall, gradient_arguments: dict[str, Any], dk_BSKD: Tensor, dv_BSKD: Tensor
) -> list[Launch]:
    """The launches that fill ``dk_BSKD`` and ``dv_BSKD``."""
    tiles = key_gradient_tiles(call.head_dim, dk_BSKD.element_size(), call.capability)
    ranges, documents = call.key_documents(tiles.block_n)
    arguments = {
        **gradient_arguments,
        **call.arguments(documents),
        "dk": call.rows(dk_BSKD),
        "dv": call.rows(dv_BSKD),
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
    }
    grid = (triton.cdiv(call.keys, tiles.block_n), dk_BSKD.shape[2], call.batch)
    return [
        *ranges,
        Launch(attention_key_gradient_kernel, grid, arguments, tiles.num_warps, tiles.num_stages),
    ]
