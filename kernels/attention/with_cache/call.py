"""One checked call of attention on a cache, reduced to what its launches need.

Shapes: B batch, T query length, S cache slots, P pages a row, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_eff.kernels.attention.tiles import padded_head_dim
from lit_eff.kernels.attention.with_cache.tiles import (
    PORTABLE,
    CacheTiles,
    Costs,
    Deal,
    Unit,
    cache_tiles,
    deal,
)
from lit_eff.kernels.device import capability_of, multiprocessors
from lit_eff.profiling.replay import workspace

LOG2E = math.log2(math.e)


@dataclass(frozen=True)
class CacheCall:
    """Arguments of `attention_with_cache` after its checks."""

    q_BTHD: Tensor
    k_cache: Tensor
    v_cache: Tensor
    lengths_B: Tensor
    page_table_BP: Tensor | None
    query_lengths_B: Tensor | None
    tree_mask_BTT: Tensor | None  # uint8
    sinks_H: Tensor | None  # float32
    alibi_H: Tensor | None  # float32
    scale: float
    window: int | None
    softcap: float | None
    max_length: int | None
    target: int | None = None  # compile for this capability rather than for the tensors' device
    costs: Costs = PORTABLE  # of the kernel that walks the cache

    @property
    def batch(self) -> int:
        return self.q_BTHD.shape[0]

    @property
    def kv_heads(self) -> int:
        return self.k_cache.shape[2]

    @property
    def group(self) -> int:
        return self.q_BTHD.shape[2] // self.kv_heads

    @property
    def rows(self) -> int:
        """Rows of (query, head of the group) that share one kv head's keys and values."""
        return self.q_BTHD.shape[1] * self.group

    @property
    def capacity(self) -> int:
        """Slots a row may use: what the kernels never step beyond, in the cache or in their workspace."""
        page_size = self.k_cache.shape[1]
        slots = page_size if self.page_table_BP is None else page_size * self.page_table_BP.shape[1]
        return slots if self.max_length is None else min(slots, self.max_length)

    @property
    def capability(self) -> int:
        """10 * major + minor of the CUDA device; 80 in the interpreter, which has no device."""
        if self.target is not None:
            return self.target
        return capability_of(self.q_BTHD.device)

    @property
    def overlaps(self) -> bool:
        """Whether the combine kernel may be started while the split kernel runs (Hopper and later).

        Never in the interpreter, which runs one after the other.
        """
        on_device = self.q_BTHD.device.type != "cpu"
        return on_device and self.capability >= 90 and self.deal.unit is not Unit.ROW

    @property
    def processors(self) -> int:
        """Multiprocessors of the device; in the interpreter and without a device, the A100's 108."""
        return multiprocessors(self.q_BTHD.device)

    @property
    def tiles(self) -> CacheTiles:
        return cache_tiles(self.q_BTHD.shape[3], self.q_BTHD.element_size(), self.capability)

    @property
    def deal(self) -> Deal:
        """How the work is dealt to programs: by shapes and device, never by values."""
        row_tiles = self.batch * self.kv_heads * -(-self.rows // self.tiles.rows)
        return deal(self.tiles, self.capacity, row_tiles, self.processors, self.costs)

    def row_arguments(self) -> dict[str, Any]:
        """The arguments that both kernels share."""
        return {
            "p_lengths": self.lengths_B,
            "p_query_lengths": self.query_lengths_B,
            "queries": self.q_BTHD.shape[1],
            "capacity": self.capacity,
            "group": self.group,
            "kv_heads": self.kv_heads,
            "window": self.window or 0,
            "HEAD_DIM": self.q_BTHD.shape[3],
            "BLOCK_D": padded_head_dim(self.q_BTHD.shape[3]),
            "CHUNK": self.tiles.chunk,
            "SEGMENT": self.tiles.segment,
            "UNIT": self.tiles.chunk if self.deal.unit is Unit.CHUNK else self.tiles.segment,
            "WINDOWED": self.window is not None,
        }

    def cache_arguments(self) -> dict[str, Any]:
        """What only the split kernel reads: queries, cache, masks, score function."""
        table, tree = self.page_table_BP, self.tree_mask_BTT
        arguments: dict[str, Any] = {
            "p_q": self.q_BTHD,
            "p_k": self.k_cache,
            "p_v": self.v_cache,
            "p_page_table": table,
            "p_tree": tree,
            "p_sinks": self.sinks_H,
            "p_alibi": self.alibi_H,
            # With a softcap the kernel computes cap * tanh(score_scale * qk), the cap carrying log2(e).
            "score_scale": self.scale * LOG2E if self.softcap is None else self.scale / self.softcap,
            "cap": 0.0 if self.softcap is None else self.softcap * LOG2E,
            "SOFTCAP": self.softcap is not None,
            "PAGE_SIZE": 0 if table is None else self.k_cache.shape[1],
        }
        for letter, axes, tensor in (
            ("q", "bthd", self.q_BTHD),
            ("k", "bshd", self.k_cache),  # b is the row, or the page
            ("v", "bshd", self.v_cache),
            ("table_", "bp", table),
            ("tree_", "btu", tree),
        ):
            strides = (0,) * len(axes) if tensor is None else tensor.stride()
            arguments |= {f"stride_{letter}{axis}": s for axis, s in zip(axes, strides, strict=True)}
        return arguments


@dataclass(frozen=True)
class Partials:
    """What each chunk or segment yields for each row, in float32 and not normalised."""

    acc: Tensor  # (B, K, parts, rows, D)
    max: Tensor  # (B, K, parts, rows); of the scores in base 2
    sum: Tensor  # likewise

    @classmethod
    def empty(cls, call: CacheCall, parts: int) -> Partials:
        shape = (call.batch, call.kv_heads, parts, call.rows)
        shapes = ((*shape, call.q_BTHD.shape[3]), shape, shape)
        return cls(*(workspace(each, torch.float32, call.q_BTHD.device) for each in shapes))

    def arguments(self) -> dict[str, Any]:
        return {"p_partial": self.acc, "p_max": self.max, "p_sum": self.sum, "parts": self.acc.shape[2]}
