"""One checked call of rotation and cache write, reduced to what its launch needs.

Shapes: B batch, T query length, S cache slots, P pages a row, H query heads, K kv heads, D head dim,
M positions of the tables, R rotary pairs (half the rotary dim).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lit_eff.kernels.attention.with_cache.checks import slots_of
from lit_eff.kernels.device import capability_of
from lit_eff.kernels.rope.arguments import Angles, Cache, Heads, Slots
from lit_eff.kernels.rope.reference import RotaryTables

TILE = 512  # pairs of channels a program takes


@dataclass(frozen=True)
class RowSlots:
    """Where each row's tokens go, in a cache (B, S, K, D) or (pages, page size, K, D)."""

    lengths_B: Tensor
    query_lengths_B: Tensor | None
    page_table_BP: Tensor | None
    positions_BT: Tensor | None

    def arguments(self, queries: int, blocks: int, block_size: int) -> Slots:
        """``blocks`` and ``block_size`` are the cache's first two dimensions."""
        table, positions = self.page_table_BP, self.positions_BT
        stride_row, stride_page = (0, 0) if table is None else table.stride()
        stride_b, stride_t = (0, 0) if positions is None else positions.stride()
        return Slots(
            self.lengths_B,
            self.query_lengths_B,
            table,
            stride_row,
            stride_page,
            positions,
            stride_b,
            stride_t,
            queries,
            slots_of(block_size, table),
            blocks,
        )


def angles_of(tables: RotaryTables | None) -> Angles:
    return Angles(None, None, 0) if tables is None else Angles(*tables, tables.cos_MR.shape[0])


def rotary_pairs(tables: RotaryTables | None) -> int:
    return 0 if tables is None else tables.cos_MR.shape[1]


@dataclass(frozen=True)
class RopeCall:
    """Arguments of `rope_cache_write` after its checks; ``out_BTHD`` may be ``q_BTHD``."""

    q_BTHD: Tensor
    k_BTKD: Tensor
    v_BTKD: Tensor
    out_BTHD: Tensor
    k_cache: Tensor
    v_cache: Tensor
    slots: RowSlots
    tables: RotaryTables | None
    q_norm_D: Tensor | None
    k_norm_D: Tensor | None
    norm_eps: float
    target: int | None = None  # compile for this capability rather than for the tensors' device

    @property
    def capability(self) -> int:
        return capability_of(self.q_BTHD.device) if self.target is None else self.target

    @property
    def block_pairs(self) -> int:
        return block_pairs(self.q_BTHD.shape[3])

    @property
    def block_heads(self) -> int:
        """By the shape of a token alone."""
        return block_heads(self.q_BTHD.shape[2], self.q_BTHD.shape[3])

    @property
    def tiles(self) -> int:
        """Programs a token."""
        return sum(-(-each.shape[2] // self.block_heads) for each in (self.q_BTHD, self.k_BTKD, self.v_BTKD))

    def arguments(self) -> dict[str, Any]:
        _batch, queries, heads, head_dim = self.q_BTHD.shape
        blocks, block_size, kv_heads, _ = self.k_cache.shape
        return {
            "q": Heads(self.q_BTHD, *self.q_BTHD.stride()),
            "k": Heads(self.k_BTKD, *self.k_BTKD.stride()),
            "v": Heads(self.v_BTKD, *self.v_BTKD.stride()),
            "out": Heads(self.out_BTHD, *self.out_BTHD.stride()),
            "k_cache": Cache(self.k_cache, *self.k_cache.stride()),
            "v_cache": Cache(self.v_cache, *self.v_cache.stride()),
            "slots": self.slots.arguments(queries, blocks, block_size),
            "angles": angles_of(self.tables),
            "p_q_gain": self.q_norm_D,
            "p_k_gain": self.k_norm_D,
            "epsilon": self.norm_eps,
            "HEADS": heads,
            "KV_HEADS": kv_heads,
            "HEAD_DIM": head_dim,
            "PAIRS": rotary_pairs(self.tables),
            "BLOCK_H": self.block_heads,
            "BLOCK_P": self.block_pairs,
            "LEVELS": self.block_pairs.bit_length() - 1,
            "PAGE_SIZE": 0 if self.slots.page_table_BP is None else block_size,
            "EARLY": self.capability >= 90,
        }


def block_pairs(head_dim: int) -> int:
    """Pairs of a head, padded to a power of two."""
    return int(1 << (head_dim // 2 - 1).bit_length())


def block_heads(heads: int, head_dim: int) -> int:
    """Heads a program takes."""
    padded = int(1 << (heads - 1).bit_length())
    return max(1, min(TILE // block_pairs(head_dim), padded))
