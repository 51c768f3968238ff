"""One checked call of propagation, reduced to its launches.

Shapes: L skipped layers, N = B T tokens, B batch, T query length, S cache slots, C model dim, K kv heads,
D head dim, O = 2 K D rows of a layer's weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from lit_eff.kernels.linear.arguments import Matrix, RowNorm
from lit_eff.kernels.linear.call import Product
from lit_eff.kernels.linear.plan import Plan
from lit_eff.kernels.linear.reference import Norm
from lit_eff.kernels.propagate.kernel import propagate_kernel
from lit_eff.kernels.propagate.keys import cached_keys_kernel
from lit_eff.kernels.rope.call import RowSlots, angles_of, block_heads, block_pairs, rotary_pairs
from lit_eff.kernels.rope.reference import RotaryTables
from lit_eff.profiling.launch import Launch

NO_NORM = RowNorm(None, None, 0.0)  # has fields, as the kernel moves them on to its layer


class LayerCaches(NamedTuple):
    """(L, B, S, K, D), or (L, pages, page size, K, D), by its strides."""

    pointer: Any
    stride_layer: int
    stride_b: int
    stride_s: int
    stride_h: int
    stride_d: int


@dataclass(frozen=True)
class PropagateCall:
    """Arguments of `propagate` after its checks; norms, biases and gains are contiguous."""

    hidden_NC: Tensor
    weight_LOC: Tensor
    k_cache: Tensor
    v_cache: Tensor
    slots: RowSlots
    norm: Norm | None  # of stacked vectors (L, C)
    bias_LO: Tensor | None
    tables: RotaryTables | None
    k_norm_LD: Tensor | None
    k_norm_eps: float
    target: int | None = None  # compile for this capability rather than for the tensors' device

    @property
    def product(self) -> Product:
        """Of the first layer; the others' plan is the same."""
        return Product(self.hidden_NC, self.weight_LOC[0], None, self.norm, self.target)

    @property
    def plan(self) -> Plan:
        """The skinny linear's for one layer's keys and values, hence its bits."""
        return self.product.plan

    def shared_arguments(self) -> dict[str, Any]:
        """What both kernels take."""
        _, blocks, block_size, kv_heads, head_dim = self.k_cache.shape
        queries = self.hidden_NC.shape[0] // self.slots.lengths_B.shape[0]
        return {
            "k_cache": LayerCaches(self.k_cache, *self.k_cache.stride()),
            "slots": self.slots.arguments(queries, blocks, block_size),
            "angles": angles_of(self.tables),
            "rows": self.hidden_NC.shape[0],
            "KV_HEADS": kv_heads,
            "HEAD_DIM": head_dim,
            "PAGE_SIZE": 0 if self.slots.page_table_BP is None else block_size,
        }

    def layers_launch(self) -> Launch:
        """Products, rotation and write of all layers; without the rotation if keys have a norm before it."""
        plan, early = self.plan, self.product.early
        width = self.weight_LOC.shape[1] // 2
        stride_layer, *strides = self.weight_LOC.stride()
        product = self.product.arguments()
        arguments = {
            **product,
            **self.shared_arguments(),
            "norm": product["norm"] or NO_NORM,
            "weight": Matrix(self.weight_LOC, *strides),
            "stride_layer": stride_layer,
            "p_bias": self.bias_LO,
            "v_cache": LayerCaches(self.v_cache, *self.v_cache.stride()),
            "PAIRS": rotary_pairs(self.tables) if self.k_norm_LD is None else 0,
            "EARLY": early,
        }
        tiles = 2 * -(-width // plan.block_o)  # of keys and of values
        grid = (self.weight_LOC.shape[0] * tiles * self.product.row_tiles,)
        return Launch(propagate_kernel, grid, arguments, plan.num_warps, plan.num_stages, early=early)

    def keys_launch(self) -> Launch:
        """The norm and rotation of keys that are written."""
        layers, _, _, kv_heads, head_dim = self.k_cache.shape
        block, early = block_heads(kv_heads, head_dim), self.product.capability >= 90
        arguments = {
            **self.shared_arguments(),
            "p_gain": self.k_norm_LD,
            "epsilon": self.k_norm_eps,
            "PAIRS": rotary_pairs(self.tables),
            "BLOCK_H": block,
            "BLOCK_P": block_pairs(head_dim),
            "LEVELS": block_pairs(head_dim).bit_length() - 1,
            "EARLY": early,
        }
        grid = (layers * self.hidden_NC.shape[0] * -(-kv_heads // block),)
        return Launch(cached_keys_kernel, grid, arguments, num_warps=4, num_stages=1, early=early)

    def launches(self) -> list[Launch]:
        written = [self.layers_launch()]
        return written if self.k_norm_LD is None else [*written, self.keys_launch()]
