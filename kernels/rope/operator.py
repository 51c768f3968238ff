"""Rotation and cache write as a PyTorch operator: torch.compile, fake tensors and CUDA graphs know it.

Needs Triton; :mod:`lit_eff.kernels.rope.interface` checks arguments and calls it.
Shapes: B batch, T query length, P pages a row, H query heads, K kv heads, D head dim, M positions of the
tables, R rotary pairs.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from lit_eff.kernels.rope.call import RopeCall, RowSlots
from lit_eff.kernels.rope.kernel import rope_cache_write_kernel
from lit_eff.kernels.rope.reference import RotaryTables
from lit_eff.profiling.launch import Launch
from lit_eff.profiling.replay import LaunchCache

LAUNCHES = LaunchCache()


def rope_launch(call: RopeCall) -> Launch:
    batch, queries = call.q_BTHD.shape[:2]
    grid = (batch * queries * call.tiles,)
    early = call.capability >= 90
    return Launch(rope_cache_write_kernel, grid, call.arguments(), num_warps=4, num_stages=1, early=early)


@torch.library.custom_op("lit_eff::rope_cache_write", mutates_args=("out_BTHD", "k_cache", "v_cache"))
def rope_cache_write(
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    v_BTKD: Tensor,
    out_BTHD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths_B: Tensor,
    cos_MR: Tensor | None,
    sin_MR: Tensor | None,
    page_table_BP: Tensor | None,
    query_lengths_B: Tensor | None,
    positions_BT: Tensor | None,
    q_norm_D: Tensor | None,
    k_norm_D: Tensor | None,
    norm_eps: float,
) -> None:
    """Fills ``out_BTHD`` and the tokens' slots. Tables, lengths and gains are contiguous."""
    if q_BTHD.shape[0] * q_BTHD.shape[1] == 0:
        return
    big = (q_BTHD, k_BTKD, v_BTKD, out_BTHD, k_cache, v_cache)
    small = (lengths_B, cos_MR, sin_MR, page_table_BP, query_lengths_B, positions_BT, q_norm_D, k_norm_D)

    def build() -> list[Launch]:
        slots = RowSlots(lengths_B, query_lengths_B, page_table_BP, positions_BT)
        tables = None if cos_MR is None or sin_MR is None else RotaryTables(cos_MR, sin_MR)
        return [rope_launch(RopeCall(*big, slots, tables, q_norm_D, k_norm_D, norm_eps))]

    with torch.cuda.device(q_BTHD.device) if q_BTHD.is_cuda else nullcontext():
        LAUNCHES.run(norm_eps, (*big, *small), (), build)


@rope_cache_write.register_fake
def _(*_: Any) -> None:
    return None
