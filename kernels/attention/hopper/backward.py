"""The backward pass on Hopper: row sums, one kernel for all three gradients, and dQ in its own dtype.

The gradient kernel reads its log-sum-exp (base 2) and delta = rowsum(dO * O) - dLSE from rows padded to whole
query blocks, where the log-sum-exp of a row that sees nothing or does not exist is +inf: its weights are
exp2(-inf) = 0 without a mask. Its programs are persistent, one a multiprocessor. It sums dQ in float32, and
scales and rounds the sums that are finished early; the last kernel does the others.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from lit_eff.kernels.attention.call import LOG2E, AttentionCall
from lit_eff.kernels.attention.hopper.gradient import attention_gradient_kernel
from lit_eff.kernels.attention.hopper.pipeline import flat_tiles, multiprocessors, obstacle_of, row_tiles
from lit_eff.profiling.launch import Launch
from lit_eff.profiling.replay import workspace


@dataclass(frozen=True)
class GradientTiles:
    """``block_m`` queries by ``block_n`` keys a step, and slots of the rings of Q and of dO tiles."""

    block_m: int
    block_n: int
    q_slots: int
    dout_slots: int


FULL = 0.9  # of the multiprocessors: the least that rounds of whole heads must fill
GRADIENT_TILES = {64: GradientTiles(128, 128, 3, 2), 128: GradientTiles(64, 128, 3, 2)}  # by head dim


@triton.jit
def attention_row_sums_kernel(
    p_out, p_dout, p_lse, p_dlse, p_rows_lse, p_rows_delta, p_turns,
    p_delta, stride_ob, stride_ot, stride_oh, stride_gb, stride_gt, stride_gh, queries, padded_queries,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, LSE_GRADIENT: tl.constexpr,
):  # fmt: skip
    """delta_BHT; padded rows of the log-sum-exp in base 2 and of delta; every query block's turns at 0."""
    i_m = tl.program_id(0)
    i_h = tl.program_id(1).to(tl.int64)
    i_b = tl.program_id(2).to(tl.int64)
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < queries
    i_bh = i_b * tl.num_programs(1) + i_h
    o_d = tl.arange(0, HEAD_DIM)
    p_out += i_b * stride_ob + i_h * stride_oh + o_m.to(tl.int64)[:, None] * stride_ot + o_d[None, :]
    p_dout += i_b * stride_gb + i_h * stride_gh + o_m.to(tl.int64)[:, None] * stride_gt + o_d[None, :]
    b_out = tl.load(p_out, mask=m_m[:, None], other=0.0)
    b_dout = tl.load(p_dout, mask=m_m[:, None], other=0.0)
    b_delta = tl.sum(b_out.to(tl.float32) * b_dout.to(tl.float32), 1)
    if LSE_GRADIENT:
        b_delta -= tl.load(p_dlse + i_bh * queries + o_m, mask=m_m, other=0.0)
    b_lse = tl.load(p_lse + i_bh * queries + o_m, mask=m_m, other=float("-inf"))
    b_lse = tl.where(b_lse == float("-inf"), float("inf"), b_lse * 1.4426950408889634)  # log2 e
    tl.store(p_rows_lse + i_bh * padded_queries + o_m, b_lse)
    tl.store(p_delta + i_bh * queries + o_m, b_delta, mask=m_m)
    tl.store(p_rows_delta + i_bh * padded_queries + o_m, b_delta)
    tl.store(p_turns + i_bh * tl.num_programs(0) + i_m, 0)


@triton.jit
def attention_scale_query_gradient_kernel(
    p_dq_sum, p_turns, p_dq, first, query_blocks, queries, heads, scale,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """dQ = scale * sum for the query blocks from ``first`` on, through all heads; 0 where none added."""
    i = first + tl.program_id(0)
    i_bh = i // query_blocks
    o_m = i % query_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, HEAD_DIM)
    p_dq_sum += i.to(tl.int64) * (BLOCK_M * HEAD_DIM)
    o_tile = tl.arange(0, BLOCK_M)[:, None] * HEAD_DIM + o_d[None, :]
    b_sum = tl.load(p_dq_sum + o_tile, mask=(o_m < queries)[:, None] & (tl.load(p_turns + i) > 0), other=0.0)
    o_row = (i_bh // heads * queries + o_m).to(tl.int64) * heads + i_bh % heads
    p_dq += o_row[:, None] * HEAD_DIM + o_d[None, :]
    tl.store(p_dq, (b_sum * scale).to(p_dq.dtype.element_ty), mask=(o_m < queries)[:, None])


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
    *,
    tiles: GradientTiles | None = None,
) -> list[Launch]:
    """The launches, in order, that fill ``delta``, ``dq``, ``dk`` and ``dv`` of a supported call.

    The arguments are those of `lit_eff.kernels.attention.backward.backward_launches`;
    ``dq_BTHD`` is contiguous.
    """
    batch, queries, heads, head_dim = call.q_BTHD.shape
    keys, kv_heads = call.k_BSKD.shape[1:3]
    tiles = tiles or GRADIENT_TILES[head_dim]
    query_blocks = -(-queries // tiles.block_m)  # triton.cdiv is a JIT function: slow to call here
    padded_queries = query_blocks * tiles.block_m
    key_blocks = -(-keys // tiles.block_n)
    items = key_blocks * kv_heads * batch
    device = call.q_BTHD.device
    at_once = multiprocessors(device)
    # Programs that take whole heads at a time, key blocks in a circle; see turns.py.
    whole = at_once // key_blocks * key_blocks
    rotated = not call.causal and whole >= FULL * min(at_once, items)
    programs = min(items, whole if rotated else at_once)
    # Causal heads whose key blocks fill the device are taken together.
    together = max(1, at_once // key_blocks) if call.causal else 1
    blocks = batch * heads * query_blocks
    # The gradient kernel scales the sums that are finished before any program takes its last item.
    scaled = max(0, items - programs - together * key_blocks) * blocks // items
    dout_BTHD = dout_BTHD if obstacle_of("dout", dout_BTHD) is None else dout_BTHD.contiguous()
    padded_rows = batch * heads * padded_queries
    rows_lse, rows_delta = (workspace((padded_rows,), torch.float32, device) for _ in range(2))
    turns = workspace((batch * heads * query_blocks,), torch.int32, device)
    dq_sum = workspace((padded_rows, head_dim), torch.float32, device)

    query_grid = (query_blocks, heads, batch)
    row_sums = {
        "p_out": out_BTHD,
        "p_dout": dout_BTHD,
        "p_lse": lse_BHT,
        "p_dlse": dlse_BHT,
        "p_rows_lse": rows_lse,
        "p_rows_delta": rows_delta,
        "p_turns": turns,
        "p_delta": delta_BHT,
        **_strides("o", out_BTHD),
        **_strides("g", dout_BTHD),
        "queries": queries,
        "padded_queries": padded_queries,
        "HEAD_DIM": head_dim,
        "BLOCK_M": tiles.block_m,
        "LSE_GRADIENT": dlse_BHT is not None,
    }
    gradients = {
        "d_q": row_tiles(call.q_BTHD, tiles.block_m),
        "d_k": row_tiles(call.k_BSKD, tiles.block_n),
        "d_v": row_tiles(call.v_BSKD, tiles.block_n),
        "d_dout": row_tiles(dout_BTHD, tiles.block_m),
        "d_lse": flat_tiles(rows_lse, tiles.block_m),
        "d_delta": flat_tiles(rows_delta, tiles.block_m),
        "d_dk": row_tiles(dk_BSKD, tiles.block_n),
        "d_dv": row_tiles(dv_BSKD, tiles.block_n),
        "d_dq_sum": flat_tiles(dq_sum, tiles.block_m, head_dim),
        "p_dq_sum": dq_sum,
        "p_dq": dq_BTHD,
        "p_turns": turns,
        "queries": queries,
        "keys": keys,
        "heads": heads,
        "group": heads // kv_heads,
        "batch": batch,
        "query_blocks": query_blocks,
        "key_blocks": key_blocks,
        "items": items,
        "together": together,
        "rotated": int(rotated),
        "scaled": scaled,
        "score_scale": call.scale * LOG2E,
        "scale": call.scale,
        "CAUSAL": call.causal,
        "Q_SLOTS": tiles.q_slots,
        "DOUT_SLOTS": tiles.dout_slots,
    }
    scaling = {
        "p_dq_sum": dq_sum,
        "p_turns": turns,
        "p_dq": dq_BTHD,
        "first": scaled,
        "query_blocks": query_blocks,
        "queries": queries,
        "heads": heads,
        "scale": call.scale,
        "HEAD_DIM": head_dim,
        "BLOCK_M": tiles.block_m,
    }
    return [
        Launch(attention_row_sums_kernel, query_grid, row_sums),
        Launch(attention_gradient_kernel, (programs,), gradients, num_warps=8, cooperative=True),
        Launch(attention_scale_query_gradient_kernel, (blocks - scaled,), scaling),
    ]


def _strides(letter: str, tensor_BTHD: Tensor) -> dict[str, int]:
    return {f"stride_{letter}{axis}": tensor_BTHD.stride(i) for i, axis in enumerate("bth")}
