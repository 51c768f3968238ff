"""Calls of attention on a cache that several tests share: drawn tensors, paging, small constants."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from lit_eff.kernels.attention.with_cache import call as cache_call
from lit_eff.kernels.attention.with_cache.specimens import SMALL
from lit_eff.kernels.attention.with_cache.tiles import Deal


@contextmanager
def small_tiles(deal: Deal | None = None) -> Iterator[None]:
    """Constants at which a few hundred slots make many chunks, and optionally a given deal of the work."""
    with mock.patch.object(cache_call, "cache_tiles", return_value=SMALL):
        if deal is None:
            yield
        else:
            with mock.patch.object(cache_call, "deal", return_value=deal):
                yield


@dataclass(frozen=True)
class CacheCase:
    """Sizes of one call; ``features`` are drawn by name: paged (page size), ragged, tree, sinks, alibi, and
    the plain options window, softcap and scale."""

    batch: int = 2
    queries: int = 3
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 16
    capacity: int = 90
    features: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        sizes = f"{self.batch}x{self.queries}x{self.heads}-{self.kv_heads}x{self.head_dim}x{self.capacity}"
        return "-".join([sizes, *(f"{name}={value}" for name, value in self.features.items())])

    def draw(self, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
        """All arguments, unused slots and pages poisoned with NaN."""
        generator = torch.Generator().manual_seed(zlib.crc32(str(self).encode()))

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

        def below(high: int, count: int = self.batch) -> Tensor:
            return torch.randint(0, high, (count,), generator=generator).to(device)

        cache = (self.batch, self.capacity, self.kv_heads, self.head_dim)
        lengths_B = below(self.capacity - self.queries + 1)
        lengths_B[0] = self.capacity - self.queries
        arguments: dict[str, Any] = {
            "q_BTHD": randn(self.batch, self.queries, self.heads, self.head_dim),
            "k_cache": randn(*cache),
            "v_cache": randn(*cache),
            "lengths_B": lengths_B,
        }
        count_B = torch.full_like(lengths_B, self.queries)
        if self.features.get("ragged"):
            count_B = below(self.queries + 1)
            arguments["query_lengths_B"] = count_B.int()
        slots = torch.arange(self.capacity, device=device)
        unused_BS = slots >= (lengths_B + count_B)[:, None]
        if window := self.features.get("window"):
            unused_BS |= slots <= lengths_B[:, None] - window
        for name in ("k_cache", "v_cache"):
            arguments[name][unused_BS] = torch.nan
        if self.features.get("tree"):
            grants = torch.rand(self.batch, self.queries, self.queries, generator=generator) < 0.5
            arguments["tree_mask_BTT"] = grants.to(device) | torch.eye(
                self.queries, dtype=torch.bool, device=device
            )
        if self.features.get("sinks"):
            arguments["sinks"] = randn(self.heads).float()
        if self.features.get("alibi"):
            arguments["alibi"] = 0.1 * randn(self.heads).float().abs()
        arguments |= {
            name: value for name, value in self.features.items() if name in ("window", "softcap", "scale")
        }
        return paged(arguments, size) if (size := self.features.get("paged")) else arguments


def paged(arguments: dict[str, Any], page_size: int) -> dict[str, Any]:
    """The same call on shuffled pages; what fills up the last page of a row is NaN, as is a spare page."""
    k = arguments["k_cache"]
    batch, capacity = k.shape[:2]
    pages = -(-capacity // page_size)
    generator = torch.Generator().manual_seed(0)
    table_BP = 1 + torch.randperm(batch * pages, generator=generator).view(batch, pages).to(k.device)
    changed = dict(arguments, page_table_BP=table_BP.int())
    for name in ("k_cache", "v_cache"):
        rows = torch.nn.functional.pad(
            arguments[name], (0, 0, 0, 0, 0, pages * page_size - capacity), value=torch.nan
        )
        pool = rows.new_full((batch * pages + 1, page_size, *rows.shape[2:]), torch.nan)
        pool[table_BP.flatten()] = rows.reshape(batch * pages, page_size, *rows.shape[2:])
        changed[name] = pool
    return changed
