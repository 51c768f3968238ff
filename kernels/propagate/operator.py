"""Propagation as a PyTorch operator, so that torch.compile, fake tensors and CUDA graphs know it.

Needs Triton; :mod:`lit_eff.kernels.propagate.interface` checks arguments and calls it.
Shapes: L skipped layers, N = B T tokens, B batch, T query length, P pages a row, C model dim, D head dim,
O rows of a layer's weight, M positions of the tables, R rotary pairs.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from lit_eff.kernels.linear.operator import norm_of
from lit_eff.kernels.propagate.call import PropagateCall
from lit_eff.kernels.rope.call import RowSlots
from lit_eff.kernels.rope.reference import RotaryTables
from lit_eff.profiling.launch import Launch
from lit_eff.profiling.replay import LaunchCache

LAUNCHES = LaunchCache()


@torch.library.custom_op("lit_eff::propagate", mutates_args=("k_cache", "v_cache"))
def propagate(
    hidden_NC: Tensor,
    weight_LOC: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths_B: Tensor,
    normed: bool,
    gain_LC: Tensor | None,
    shift_LC: Tensor | None,
    epsilon: float,
    centered: bool,
    bias_LO: Tensor | None,
    cos_MR: Tensor | None,
    sin_MR: Tensor | None,
    page_table_BP: Tensor | None,
    query_lengths_B: Tensor | None,
    positions_BT: Tensor | None,
    k_norm_LD: Tensor | None,
    k_norm_eps: float,
) -> None:
    """Fills the tokens' slots of every layer's caches."""
    if hidden_NC.shape[0] == 0 or weight_LOC.shape[0] == 0:
        return
    big = (hidden_NC, weight_LOC, k_cache, v_cache)
    small = (lengths_B, gain_LC, shift_LC, bias_LO, cos_MR, sin_MR, page_table_BP, query_lengths_B)
    options = (normed, epsilon, centered, k_norm_eps)

    def build() -> list[Launch]:
        norm = norm_of((normed, gain_LC, shift_LC, epsilon, centered))
        slots = RowSlots(lengths_B, query_lengths_B, page_table_BP, positions_BT)
        tables = None if cos_MR is None or sin_MR is None else RotaryTables(cos_MR, sin_MR)
        return PropagateCall(*big, slots, norm, bias_LO, tables, k_norm_LD, k_norm_eps).launches()

    with torch.cuda.device(hidden_NC.device) if hidden_NC.is_cuda else nullcontext():
        LAUNCHES.run(options, (*big, *small, positions_BT, k_norm_LD), (), build)


@propagate.register_fake
def _(*_: Any) -> None:
    return None
