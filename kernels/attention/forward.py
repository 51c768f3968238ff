"""The Triton forward kernel: FlashAttention-2's loop order (Dao 2023, Algorithm 1), online softmax in base 2.

A program owns ``BLOCK_M`` queries of one head and walks the keys once. Its HBM traffic is modelled to the
byte by `traffic_model.forward_traffic`.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lit_eff.kernels.attention.blocks import (
    head_of,
    keeps,
    key_range,
    load_ids,
    load_rows,
    row_of,
    rows_of,
    scores,
    sees,
    statistic_of,
    store_rows,
    with_bias,
)
from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.kernels.attention.tiles import forward_tiles
from lit_eff.profiling.launch import Launch


@triton.jit
def _walk_keys(
    b_acc, b_sum, b_max, b_q, k, v, o_m, b_document, start, stop, head, rule, documents,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, ROUNDS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Fold the key blocks in [start, stop) into the running (output, sum, maximum) of each query."""
    for n in tl.range(start, stop, BLOCK_N):
        o_n = n + tl.arange(0, BLOCK_N)
        b_k = load_rows(k, n, head.keys, HEAD_DIM, BLOCK_N, BLOCK_D, MASKED)
        b_s = with_bias(scores(b_q, b_k, rule), o_m[:, None], o_n[None, :], head, rule)
        if MASKED:
            b_key_document = None
            if documents is not None:
                b_key_document = load_ids(
                    documents.key_ids, documents.stride_kb, documents.stride_ks, head.i_b, o_n, head.keys
                )[None, :]
            m_sees = sees(o_m[:, None], o_n[None, :], b_document, b_key_document, head, rule, CAUSAL)
            b_s = tl.where(m_sees, b_s, float("-inf"))
        b_new_max = tl.maximum(b_max, tl.max(b_s, 1))
        b_reference = b_new_max
        if MASKED:  # a query that has seen no key yet: -inf minus -inf would be NaN
            b_reference = tl.where(b_new_max == float("-inf"), 0.0, b_new_max)
        b_p = tl.exp2(b_s - b_reference[:, None])
        b_decay = tl.exp2(b_max - b_reference)
        b_sum = b_sum * b_decay + tl.sum(b_p, 1)
        b_acc = b_acc * b_decay[:, None]
        if rule.seed is not None:  # the sum is over all weights: dropout comes after the softmax
            b_p = tl.where(keeps(o_m[:, None], o_n[None, :], head, rule, ROUNDS), b_p, 0.0)
        b_v = load_rows(v, n, head.keys, HEAD_DIM, BLOCK_N, BLOCK_D, MASKED)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc, input_precision="ieee")
        b_max = b_new_max
    return b_acc, b_sum, b_max


@triton.jit
def attention_forward_kernel(
    q, k, v, out, lse, sinks, sizes, rule, documents,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    # The last queries see the most keys: start them first, so that no long program is left for the end.
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
    b_q = load_rows(
        rows_of(q, i_b, i_h, row.first_query), first, head.queries, HEAD_DIM, BLOCK_M, BLOCK_D, True
    )
    start, inner_start, inner_stop, stop = key_range(first, head, rule, documents, BLOCK_M, BLOCK_N, CAUSAL)

    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if sinks is not None:  # as if each query had already seen one key of this score, whose value is zero
        b_sum += 1.0
        b_max = tl.zeros([BLOCK_M], tl.float32) + tl.load(sinks + i_h) * 1.4426950408889634  # log2 e
    b_acc, b_sum, b_max = _walk_keys(
        b_acc, b_sum, b_max, b_q, k, v, o_m, b_document, inner_start, inner_stop,
        head, rule, documents, HEAD_DIM, BLOCK_D, BLOCK_N, CAUSAL, ROUNDS, False,
    )  # fmt: skip
    # Then what needs masks: after the inner blocks, and before them where a window or a document starts.
    EDGES: tl.constexpr = 1 if rule.window is None and documents is None else 2
    for edge in tl.range(0, EDGES):
        b_acc, b_sum, b_max = _walk_keys(
            b_acc, b_sum, b_max, b_q, k, v, o_m, b_document,
            tl.where(edge == 0, inner_stop, start), tl.where(edge == 0, stop, tl.minimum(inner_start, stop)),
            head, rule, documents, HEAD_DIM, BLOCK_D, BLOCK_N, CAUSAL, ROUNDS, True,
        )  # fmt: skip

    # A query that saw nothing has a maximum of -inf and a sum of 0, divided as 1: output 0, log-sum-exp -inf.
    b_sum = tl.where(b_sum == 0.0, 1.0, b_sum)
    b_acc = b_acc / b_sum[:, None]
    if rule.seed is not None:
        b_acc *= rule.keep_scale
    b_lse = (b_max + tl.log2(b_sum)) * 0.6931471805599453  # ln 2: the scores are in base 2
    tl.store(statistic_of(lse, i_b, i_h, row.first_query) + o_m, b_lse, mask=o_m < head.queries)
    store_rows(
        rows_of(out, i_b, i_h, row.first_query), b_acc, first, head.queries, HEAD_DIM, BLOCK_M, BLOCK_D
    )


def forward_launches(call: AttentionCall, out_BTHD: Tensor, lse_BHT: Tensor) -> list[Launch]:
    """The launches that fill ``out_BTHD`` and the contiguous float32 ``lse_BHT``."""
    tiles = forward_tiles(call.head_dim, call.q_BTHD.element_size(), call.capability)
    ranges, documents = call.documents(tiles.block_m)
    arguments = {
        **call.arguments(documents),
        "out": call.rows(out_BTHD),
        "lse": call.statistic(lse_BHT),
        "sinks": call.sinks_H,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
    }
    grid = (triton.cdiv(call.queries, tiles.block_m), call.heads, call.batch)
    return [*ranges, Launch(attention_forward_kernel, grid, arguments, tiles.num_warps, tiles.num_stages)]
