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

from lit_eff.kernels.attention.blocks import key_range, load_rows, scores, sees, store_rows
from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.kernels.attention.tiles import forward_tiles
from lit_eff.profiling.launch import Launch


@triton.jit
def _walk_keys(
    b_acc, b_sum, b_max, b_q, o_slot, b_document, p_k, p_v, p_key_documents,
    stride_ks, stride_kd, stride_vs, stride_vd, stride_es,
    start, stop, keys, window, score_scale, cap,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, SOFTCAP: tl.constexpr, DOCUMENTS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Fold the key blocks in [start, stop) into the running (output, sum, maximum) of each query."""
    for n in tl.range(start, stop, BLOCK_N):
        o_n = n + tl.arange(0, BLOCK_N)
        b_k = load_rows(p_k, n, keys, stride_ks, stride_kd, HEAD_DIM, BLOCK_N, BLOCK_D, MASKED)
        b_s = scores(b_q, b_k, score_scale, cap, SOFTCAP)
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
            b_s = tl.where(m_sees, b_s, float("-inf"))
        b_new_max = tl.maximum(b_max, tl.max(b_s, 1))
        b_reference = b_new_max
        if MASKED:  # a query that has seen no key yet: -inf minus -inf would be NaN
            b_reference = tl.where(b_new_max == float("-inf"), 0.0, b_new_max)
        b_p = tl.exp2(b_s - b_reference[:, None])
        b_decay = tl.exp2(b_max - b_reference)
        b_sum = b_sum * b_decay + tl.sum(b_p, 1)
        b_acc = b_acc * b_decay[:, None]
        b_v = load_rows(p_v, n, keys, stride_vs, stride_vd, HEAD_DIM, BLOCK_N, BLOCK_D, MASKED)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc, input_precision="ieee")
        b_max = b_new_max
    return b_acc, b_sum, b_max


@triton.jit
def attention_forward_kernel(
    p_q, p_k, p_v, p_out, p_lse, p_documents, p_key_documents, p_starts,
    stride_qb, stride_qt, stride_qh, stride_qd,
    stride_kb, stride_ks, stride_kh, stride_kd,
    stride_vb, stride_vs, stride_vh, stride_vd,
    stride_ob, stride_ot, stride_oh, stride_od,
    stride_db, stride_dt, stride_eb, stride_es,
    queries, keys, group, window, score_scale, cap,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, SOFTCAP: tl.constexpr, DOCUMENTS: tl.constexpr,
    STARTS: tl.constexpr,
):  # fmt: skip
    # The last queries see the most keys: start them first, so that no long program is left for the end.
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

    start, inner_start, inner_stop, stop = key_range(
        first, offset, queries, keys, window, BLOCK_M, BLOCK_N, CAUSAL, WINDOWED, DOCUMENTS
    )
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if WINDOWED:
        b_acc, b_sum, b_max = _walk_keys(
            b_acc, b_sum, b_max, b_q, o_m + offset, b_document, p_k, p_v, p_key_documents,
            stride_ks, stride_kd, stride_vs, stride_vd, stride_es,
            start, tl.minimum(inner_start, stop), keys, window, score_scale, cap,
            HEAD_DIM, BLOCK_D, BLOCK_N, CAUSAL, WINDOWED, SOFTCAP, DOCUMENTS, True,
        )  # fmt: skip
    if not DOCUMENTS:
        b_acc, b_sum, b_max = _walk_keys(
            b_acc, b_sum, b_max, b_q, o_m + offset, b_document, p_k, p_v, p_key_documents,
            stride_ks, stride_kd, stride_vs, stride_vd, stride_es,
            inner_start, inner_stop, keys, window, score_scale, cap,
            HEAD_DIM, BLOCK_D, BLOCK_N, CAUSAL, WINDOWED, SOFTCAP, DOCUMENTS, False,
        )  # fmt: skip
    b_acc, b_sum, b_max = _walk_keys(
        b_acc, b_sum, b_max, b_q, o_m + offset, b_document, p_k, p_v, p_key_documents,
        stride_ks, stride_kd, stride_vs, stride_vd, stride_es,
        inner_stop, stop, keys, window, score_scale, cap,
        HEAD_DIM, BLOCK_D, BLOCK_N, CAUSAL, WINDOWED, SOFTCAP, DOCUMENTS, True,
    )  # fmt: skip

    # A query that saw nothing has a maximum of -inf and a sum of 0, divided as 1: output 0, log-sum-exp -inf.
    b_sum = tl.where(b_sum == 0.0, 1.0, b_sum)
    b_acc = b_acc / b_sum[:, None]
    b_lse = (b_max + tl.log2(b_sum)) * 0.6931471805599453  # ln 2: the scores are in base 2
    i_bh = i_b * tl.num_programs(1) + i_h
    tl.store(p_lse + i_bh * queries + o_m, b_lse, mask=o_m < queries)
    store_rows(
        p_out + i_b * stride_ob + i_h * stride_oh,
        b_acc,
        first,
        queries,
        stride_ot,
        stride_od,
        HEAD_DIM,
        BLOCK_M,
        BLOCK_D,
    )


def forward_launch(call: AttentionCall, out_BTHD: Tensor, lse_BHT: Tensor) -> Launch:
    """The launch that fills ``out_BTHD`` and the contiguous float32 ``lse_BHT``."""
    batch, queries, heads, head_dim = call.q_BTHD.shape
    tiles = forward_tiles(head_dim, call.q_BTHD.element_size(), call.capability)
    arguments = {
        **call.arguments(),
        **call.strides("o", out_BTHD),
        "p_out": out_BTHD,
        "p_lse": lse_BHT,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
    }
    grid = (triton.cdiv(queries, tiles.block_m), heads, batch)
    return Launch(attention_forward_kernel, grid, arguments, tiles.num_warps, tiles.num_stages)
