"""A decode step reduced to its launches.

Shapes: L layers, C model dim, H query heads, K kv heads, D head dim, M MLP inner width, V vocabulary, N rows,
B sequences, S cache slots.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from lit_eff.kernels.decode_step.arguments import Cache, Rows, Shape, Weights, Work
from lit_eff.kernels.decode_step.kernel import decode_step_kernel
from lit_eff.kernels.decode_step.plan import ROW_TILE, Plan
from lit_eff.profiling.launch import Launch

PHASES = ("qkv", "attention", "output", "gate_up", "down")


def new_work(shape: Shape, plan: Plan, rows: int, slots: int, like: Tensor) -> Work:
    """Workspaces for up to ``rows`` rows, in the dtype and on the device of ``like``."""
    parts = -(-slots // plan.keys)

    def floats(*sizes: int) -> Tensor:
        return like.new_zeros(sizes, dtype=torch.float32)

    def counts(*sizes: int) -> Tensor:
        return like.new_zeros(sizes, dtype=torch.int32)

    return Work(
        hidden=like.new_zeros(rows, shape.channels),
        scaled=like.new_zeros(rows, shape.channels),
        normed=like.new_zeros(rows, shape.channels),
        squares=like.new_zeros(2 * shape.layers + 1, 2, rows, dtype=torch.int64),
        query=like.new_zeros(rows, shape.attended),
        attended=like.new_zeros(rows, shape.attended),
        inner=like.new_zeros(rows, shape.inner),
        partial=floats(rows, shape.heads, parts, shape.head_dim),
        maxima=floats(rows, shape.heads, parts),
        sums=floats(rows, shape.heads, parts),
        finished=counts(rows, shape.kv_heads),
        barrier=counts(2),
    )


def cache_of(k_LBSKD: Tensor, v_LBSKD: Tensor) -> Cache:
    return Cache(k_LBSKD, v_LBSKD, *k_LBSKD.stride()[:4])


def step_launches(
    shape: Shape,
    plan: Plan,
    weights: Weights,
    row: Rows,
    cache: Cache,
    work: Work,
    rows: int,
    layers: tuple[int, int],
    capability: int,
    advance: int = 0,
    trace: Tensor | None = None,
) -> list[Launch]:
    """Launches that run layers [first, last) of ``rows`` rows; before the first layer comes the embedding,
    after the last of all the norm that the output head reads.

    Positions grow by ``advance`` at the end. ``trace``, int64 (1 + 2 barriers + 1, P), takes each program's
    clock when it starts, before and after each barrier but that of the last norm, and when it ends.
    """
    first, last = layers
    rate = weights.embedding.element_size()
    ahead, slots = plan.ahead, cache.k.shape[2]
    early = capability >= 90 and plan.form == "launches"
    arguments: dict[str, Any] = {
        "weights": weights,
        "row": row,
        "cache": cache,
        "work": work,
        "p_trace": trace,
        "rows": rows,
        "norms": 2 * shape.layers + 1,
        "capacity": slots,
        "chunks": -(-slots // plan.keys),
        "epsilon": shape.epsilon,
        "scale": shape.head_dim**-0.5 * math.log2(math.e),
        "CHANNELS": shape.channels,
        "HEADS": shape.heads,
        "KV_HEADS": shape.kv_heads,
        "HEAD_DIM": shape.head_dim,
        "INNER": shape.inner,
        "ROWS": ROW_TILE,
        "GROUP_TILE": max(16, triton.next_power_of_2(shape.heads // shape.kv_heads)),
        "KEYS": plan.keys,
        "WARP_KEYS": plan.warp_keys,
        "STAGES_KEYS": plan.stages_keys,
        "LANES": plan.lanes,
        "CHUNK": plan.chunk,
        "STAGES": plan.num_stages,
        "LANES_INNER": plan.lanes_inner,
        "CHUNK_INNER": plan.chunk_inner,
        "STAGES_INNER": plan.stages_inner,
        "BLOCK_QKV": plan.block_qkv,
        "BLOCK_HIDDEN": plan.block_hidden,
        "BLOCK_INNER": plan.block_inner,
        "BLOCK_C": triton.next_power_of_2(shape.channels),
        "AHEAD_QKV": ahead.qkv // (2 * shape.channels * rate),
        "AHEAD_OUTPUT": ahead.output // (shape.attended * rate),
        "AHEAD_GATE_UP": ahead.gate_up // (2 * shape.channels * rate),
        "AHEAD_DOWN": ahead.down // (shape.inner * rate),
        "EARLY": early,
    }

    def launch(phase: str | None, embed: bool, first: int, last: int, advance: int) -> Launch:
        final = last == shape.layers
        more = {
            "PHASE": phase,
            "EMBED": embed,
            "FINAL": final,
            "first": first,
            "last": last,
            "advance": advance,
        }
        return Launch(
            decode_step_kernel,
            (plan.programs,),
            arguments | more,
            plan.num_warps,
            plan.num_stages,
            early=early,
            cooperative=phase is None,
        )

    if plan.form == "persistent":
        return [launch(None, first == 0, first, last, advance)]
    embed = [launch("embed", False, 0, 0, 0)] if first == 0 else []
    normed = [launch("normed", False, 0, 0, 0)] if last == shape.layers else []
    return [
        *embed,
        *(
            launch(phase, False, layer, layer + 1, advance if layer + 1 == last else 0)
            for layer in range(first, last)
            for phase in PHASES
        ),
        *normed,
    ]
