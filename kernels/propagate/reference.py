"""Propagation in plain PyTorch: the definition that the kernel is tested against.

Shapes: L skipped layers, B batch, T query length, S cache slots, P pages a row, C model dim, K kv heads,
D head dim, O = 2 K D rows of a layer's weight, keys first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_eff.kernels.linear.reference import Norm, skinny_linear_reference
from lit_eff.kernels.rope.reference import RotaryTables, rope_cache_write_reference


def layer_norm_of(norm: Norm | None, layer: int) -> Norm | None:
    """One layer's norm of those stacked."""
    if norm is None:
        return None
    gain, shift = (None if each is None else each[layer] for each in norm[:2])
    return Norm(gain, shift, norm.eps, norm.centered)


def propagate_reference(
    hidden_BTC: Tensor,
    weight_LOC: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths_B: Tensor,
    *,
    norm: Norm | None = None,
    bias_LO: Tensor | None = None,
    tables: RotaryTables | None = None,
    page_table_BP: Tensor | None = None,
    query_lengths_B: Tensor | None = None,
    positions_BT: Tensor | None = None,
    k_norm_LD: Tensor | None = None,
    k_norm_eps: float = 1e-6,
    accumulate: torch.dtype = torch.float32,
) -> None:
    """Layer by layer: the product, its rotation, the write.

    Arguments as in :func:`lit_eff.kernels.propagate.propagate`.
    """
    batch, queries, channels = hidden_BTC.shape
    for layer, weight_OC in enumerate(weight_LOC):
        kv_NO = skinny_linear_reference(
            hidden_BTC.reshape(-1, channels),
            weight_OC,
            bias=None if bias_LO is None else bias_LO[layer],
            norm=layer_norm_of(norm, layer),
            accumulate=accumulate,
        )
        kv_BTHD = kv_NO.view(batch, queries, -1, k_cache.shape[-1])
        k_BTKD, v_BTKD = kv_BTHD.chunk(2, dim=2)
        rope_cache_write_reference(
            k_BTKD[:, :, :0],
            k_BTKD,
            v_BTKD,
            k_cache[layer],
            v_cache[layer],
            lengths_B,
            tables=tables,
            page_table_BP=page_table_BP,
            query_lengths_B=query_lengths_B,
            positions_BT=positions_BT,
            k_norm_D=None if k_norm_LD is None else k_norm_LD[layer],
            norm_eps=k_norm_eps,
            accumulate=accumulate,
        )
