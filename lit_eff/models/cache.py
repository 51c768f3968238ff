"""Key/value cache with static buffers: rows of different lengths, rollback by length, rows dropped by index.

Shapes: B batch, T query length, S key slots (the capacity), K kv heads, D head dim, L layers.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.models.config import ModelConfig


class KVCache:
    """Keys and values of every layer in two buffers that never move or grow.

    Layers may stand at different depths (a token that left early has keys only in the shallow layers), so a
    write names its slots and does not touch ``lengths_B``; the decoder that owns the cache moves the lengths.
    Rolling back is lowering a length: slots at and after a row's length are never read before they are
    overwritten, because a query at slot s sees slots 0..s only.

    Attributes:
        k, v: (L, B, S, K, D). Zero at first, so that a masked slot never holds a NaN.
        lengths_B: int64, tokens that every layer holds.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch < 1 or capacity < 1:
            raise UserError(f"KV cache of {batch} rows and {capacity} slots; expected positive numbers")
        shape = (config.layers, batch, capacity, config.n_kv_heads, config.head_size)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths_B = torch.zeros(batch, dtype=torch.int64, device=device)

    @property
    def batch(self) -> int:
        return self.k.shape[1]

    @property
    def capacity(self) -> int:
        return self.k.shape[2]

    def write(
        self, layer: int, k_BTKD: Tensor, v_BTKD: Tensor, starts_B: Tensor, rows_B: Tensor | None = None
    ) -> None:
        """Store T new keys and values of each row b at slots ``starts_B[b] ..``; earlier content goes.

        ``rows_B``, int64, says which rows they are of; by default the first ones.

        Raises:
            IndexError: past the capacity (on a CPU; on a GPU the device asserts).
        """
        batch, length = k_BTKD.shape[:2]
        rows_B1 = (torch.arange(batch, device=k_BTKD.device) if rows_B is None else rows_B)[:, None]
        slots_BT = starts_B[:, None] + torch.arange(length, device=k_BTKD.device)
        self.k[layer].index_put_((rows_B1, slots_BT), k_BTKD.to(self.k.dtype))
        self.v[layer].index_put_((rows_B1, slots_BT), v_BTKD.to(self.v.dtype))

    def view(self, layer: int, slots: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, (B, S, K, D), all slots or the first ``slots``; no copy."""
        return self.k[layer, :, :slots], self.v[layer, :, :slots]

    def row(self, index: int) -> KVCache:
        """One row of this cache, in the same memory."""
        result = copy(self)
        result.k, result.v = self.k[:, index : index + 1], self.v[:, index : index + 1]
        result.lengths_B = self.lengths_B[index : index + 1]
        return result

    def advance(self, counts_B: Tensor) -> None:
        """Add to each row's length the tokens that all layers now hold."""
        self.lengths_B += counts_B

    def rollback(self, lengths_B: Tensor) -> None:
        """Shorten each row to ``lengths_B``; a longer length than the present one is refused."""
        if bool((lengths_B > self.lengths_B).any()) or bool((lengths_B < 0).any()):
            raise UserError(
                f"cannot roll back rows of {self.lengths_B.tolist()} tokens to {lengths_B.tolist()}; "
                "each length must be between 0 and the present one"
            )
        self.lengths_B.copy_(lengths_B)

    def select(self, rows: Tensor) -> None:
        """Keep only ``rows`` (int64 indices or a boolean mask), in that order: finished rows cost nothing."""
        self.k, self.v = self.k[:, rows].contiguous(), self.v[:, rows].contiguous()
        self.lengths_B = self.lengths_B[rows]
