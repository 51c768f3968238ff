"""Calls of the rotation with cache write that several tests share."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from lit_eff.kernels.rope import call as rope_call
from lit_eff.kernels.rope import rope_cache_write, rope_cache_write_reference, rotary_tables
from lit_eff.kernels.rope.call import TILE
from tests.kernels.cache_cases import paged


@dataclass(frozen=True)
class RopeCase:
    """Sizes and features of one call; ``rotary`` channels turn, 0 is none; ``page`` is the page size.

    ``tile`` pairs of channels a program takes: if few, a token's queries, keys and values have several each.
    """

    batch: int = 3
    queries: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    capacity: int = 20
    rotary: int = 32
    page: int = 0
    ragged: bool = False
    positions: bool = False
    norm: bool = False
    tile: int = TILE

    def draw(self, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
        """All arguments; q, k and v are views of one fused projection."""
        generator = torch.Generator().manual_seed(zlib.crc32(str(self).encode()))

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

        def below(high: int, *shape: int) -> Tensor:
            return torch.randint(0, high, shape, generator=generator).to(device)

        width = self.heads + 2 * self.kv_heads
        qkv = 3 * randn(self.batch, self.queries, width, self.head_dim)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=2)  # type: ignore[no-untyped-call]
        cache = (self.batch, self.capacity, self.kv_heads, self.head_dim)
        lengths_B = below(self.capacity - self.queries + 1, self.batch)
        lengths_B[0] = self.capacity - self.queries
        arguments: dict[str, Any] = {
            "q_BTHD": q,
            "k_BTKD": k,
            "v_BTKD": v,
            "k_cache": randn(*cache),
            "v_cache": randn(*cache),
            "lengths_B": lengths_B,
        }
        if self.rotary:
            frequencies = 1.0 / 100.0 ** (torch.arange(0, self.rotary, 2) / self.rotary)
            arguments["tables"] = rotary_tables(frequencies.to(device), self.capacity)
        if self.ragged:
            arguments["query_lengths_B"] = below(self.queries + 1, self.batch).int()
        if self.positions:
            arguments["positions_BT"] = below(self.capacity, self.batch, self.queries)
        if self.norm:
            arguments |= {"q_norm_D": 1 + 0.3 * randn(self.head_dim), "norm_eps": 1e-5}
            arguments["k_norm_D"] = 1 + 0.3 * randn(self.head_dim)
        return paged(arguments, self.page) if self.page else arguments


def run(arguments: dict[str, Any], tile: int = TILE) -> tuple[Tensor, Tensor, Tensor]:
    """q, then both caches, of which the call gets copies."""
    caches = {name: arguments[name].clone() for name in ("k_cache", "v_cache")}
    with mock.patch.object(rope_call, "TILE", tile):
        q = rope_cache_write(**(arguments | caches))
    return q, caches["k_cache"], caches["v_cache"]


def plain(arguments: dict[str, Any], accumulate: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """The reference's, in float64 if that is asked for."""
    changed = dict(arguments)
    if accumulate == torch.float64:
        for name, value in arguments.items():
            if torch.is_tensor(value) and value.is_floating_point():
                changed[name] = value.double()
    for name in ("k_cache", "v_cache"):
        changed[name] = changed[name].clone()
    q = rope_cache_write_reference(**changed, accumulate=accumulate)
    return q, changed["k_cache"], changed["v_cache"]


CASES = [
    RopeCase(),
    RopeCase(batch=1, queries=1),
    RopeCase(rotary=0),
    RopeCase(rotary=12),
    RopeCase(head_dim=80, rotary=80, ragged=True),
    RopeCase(head_dim=22, rotary=6, norm=True),
    RopeCase(heads=9, kv_heads=3, head_dim=64, rotary=64, page=6),
    RopeCase(heads=20, kv_heads=1, head_dim=128, rotary=64, page=16, ragged=True, positions=True),
    RopeCase(heads=12, kv_heads=12, ragged=True, positions=True, norm=True),
    RopeCase(rotary=0, norm=True, page=4),
    RopeCase(heads=5, kv_heads=3, norm=True, page=7, tile=32),
]
