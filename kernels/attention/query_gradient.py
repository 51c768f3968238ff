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
    head_of,
    keeps,
    key_range,
    load_ids,
    load_lse,
    load_rows,
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
from lit_eff.kernels.attention.tiles import query_gradient_tiles
from lit_eff.profiling.launch import Launch


@triton.jit
def _walk_keys(
    b_dq, b_q, b_dout, b_lse, b_delta, k, v, o_m, b_document, start, stop, head, rule, documents,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, ROUNDS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add the key blocks in [start, stop) to dQ; tiles are queries by keys."""
    for n in tl.range(start, stop, BLOCK_N):
        o_n = n + tl.arange(0, BLOCK_N)
        b_k = load_rows(k, n, head.keys, HEAD_DIM, BLOCK_N, BLOCK_D, MASKED)
        b_capped = scores(b_q, b_k, rule)
        b_s = with_bias(b_capped, o_m[:, None], o_n[None, :], head, rule)
        b_p = tl.exp2(b_s - b_lse[:, None])
        if MASKED:
            b_key_document = None
            if documents is not None:
                b_key_document = load_ids(
                    documents.key_ids, documents.stride_kb, documents.stride_ks, head.i_b, o_n, head.keys
                )[None, :]
            m_sees = sees(o_m[:, None], o_n[None, :], b_document, b_key_document, head, rule, CAUSAL)
            b_p = tl.where(m_sees, b_p, 0.0)
        b_v = load_rows(v, n, head.keys, HEAD_DIM, BLOCK_N, BLOCK_D, MASKED)
        b_dp = tl.dot(b_dout, tl.trans(b_v), input_precision="ieee")
        if rule.seed is not None:
            m_keeps = keeps(o_m[:, None], o_n[None, :], head, rule, ROUNDS)
            b_dp = tl.where(m_keeps, b_dp * rule.keep_scale, 0.0)
        b_ds = score_gradient(b_p, b_dp, b_delta[:, None], b_capped, rule)
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision="ieee")
    return b_dq


@triton.jit
def attention_query_gradient_kernel(
    q, k, v, dout, lse, delta, dq, scale, sizes, rule, documents,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """dQ of one query block of one head."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    i_h = tl.program_id(1).to(tl.int64)
    i_b = tl.program_id(2).to(tl.int64)
    row = row_of(sizes, i_b)
    head = head_of(row, rule, i_h)
    k = rows_of(k, i_b, i_h // sizes.group, row.first_key)
    v = rows_of(v, i_b, i_h // sizes.group, row.first_key)
    o_m = first + tl.arange(0, BLOCK_M)
    b_document = None
    if documents is not None:
        b_document = load_ids(
            documents.query_ids, documents.stride_qb, documents.stride_qt, i_b, o_m, head.queries
        )[:, None]
    q = rows_of(q, i_b, i_h, row.first_query)
    dout = rows_of(dout, i_b, i_h, row.first_query)
    b_q = load_rows(q, first, head.queries, HEAD_DIM, BLOCK_M, BLOCK_D, True)
    b_dout = load_rows(dout, first, head.queries, HEAD_DIM, BLOCK_M, BLOCK_D, True)
    b_lse = load_lse(statistic_of(lse, i_b, i_h, row.first_query), o_m, head.queries)
    p_delta = statistic_of(delta, i_b, i_h, row.first_query)
    b_delta = tl.load(p_delta + o_m, mask=o_m < head.queries, other=0.0)
    start, inner_start, inner_stop, stop = key_range(first, head, rule, documents, BLOCK_M, BLOCK_N, CAUSAL)
    b_dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    b_dq = _walk_keys(
        b_dq, b_q, b_dout, b_lse, b_delta, k, v, o_m, b_document, inner_start, inner_stop,
        head, rule, documents, HEAD_DIM, BLOCK_D, BLOCK_N, CAUSAL, ROUNDS, False,
    )  # fmt: skip
    # Then what needs masks: after the inner blocks, and before them where a window or a document starts.
    EDGES: tl.constexpr = 1 if rule.window is None and documents is None else 2
    for edge in tl.range(0, EDGES):
        b_dq = _walk_keys(
            b_dq, b_q, b_dout, b_lse, b_delta, k, v, o_m, b_document,
            tl.where(edge == 0, inner_stop, start), tl.where(edge == 0, stop, tl.minimum(inner_start, stop)),
            head, rule, documents, HEAD_DIM, BLOCK_D, BLOCK_N, CAUSAL, ROUNDS, True,
        )  # fmt: skip
    dq = rows_of(dq, i_b, i_h, row.first_query)
    store_rows(dq, b_dq * scale, first, head.queries, HEAD_DIM, BLOCK_M, BLOCK_D)


def query_gradient_launches(
    call: AttentionCall, gradient_arguments: dict[str, Any], dq_BTHD: Tensor
) -> list[Launch]:
    """The launches that fill ``dq_BTHD``."""
    tiles = query_gradient_tiles(call.head_dim, dq_BTHD.element_size(), call.capability)
    ranges, documents = call.documents(tiles.block_m)
    arguments = {
        **gradient_arguments,
        **call.arguments(documents),
        "dq": call.rows(dq_BTHD),
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
    }
    grid = (triton.cdiv(call.queries, tiles.block_m), call.heads, call.batch)
    return [
        *ranges,
        Launch(attention_query_gradient_kernel, grid, arguments, tiles.num_warps, tiles.num_stages),
    ]
