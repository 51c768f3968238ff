"""Generated cases of attention on a key/value cache: features alone and in pairs, sizes, ragged rows.

Shapes: B batch, T query tokens, S cache slots, P pages a row, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lit_eff.bench.attention_cases import DTYPES, random_tree

FEATURES: dict[str, dict[str, Any]] = {
    "page size 16": {"page_size": 16},
    "page size 64": {"page_size": 64},
    "ragged queries": {"ragged": True},
    "tree": {"tree": True},
    "window": {"window": 40},
    "softcap": {"softcap": 3.0},
    "sinks": {"sinks": True},
    "alibi": {"alibi": True},
    "one kv head": {"heads": 4, "kv_heads": 1},
    "no groups": {"heads": 2, "kv_heads": 2},
    "padded head dim": {"head_dim": 80},
}
GROUPS = ({"page size 16", "page size 64"}, {"one kv head", "no groups"})


@dataclass(frozen=True)
class CachedCase:
    """One call on a cache of ``slots``; ``lengths`` are the tokens before the queries, one row each."""

    family: str
    features: tuple[str, ...] = ()
    lengths: tuple[int, ...] = (0, 37, 190)
    queries: int = 5
    slots: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    dtype: str = "bfloat16"
    page_size: int | None = None
    ragged: bool = False
    tree: bool = False
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    alibi: bool = False

    @property
    def name(self) -> str:
        words = [
            "cache",
            self.family,
            *self.features,
            f"{self.queries} of {self.slots}",
            f"dim {self.head_dim}",
        ]
        return ", ".join([*words, f"lengths {'-'.join(map(str, self.lengths))}", self.dtype])

    @property
    def cost(self) -> int:
        return len(self.lengths) * max(16, self.queries) * self.slots * self.heads

    def for_interpreter(self) -> CachedCase:
        """Float16 for bfloat16, which Triton's interpreter multiplies wrongly."""
        return replace(self, dtype="float16") if self.dtype == "bfloat16" else self

    def inputs(self, device: str) -> tuple[list[Tensor], dict[str, Any]]:
        """q, the two caches and the lengths; the options. Slots that no query sees hold NaN."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))
        dtype: torch.dtype = getattr(torch, self.dtype)
        draw = functools.partial(torch.randn, generator=generator)
        batch = len(self.lengths)
        q = draw(batch, self.queries, self.heads, self.head_dim).to(device, dtype)
        lengths_B = torch.tensor(self.lengths, dtype=torch.int32)
        caches = []
        for _ in range(2):
            cache = draw(batch, self.slots, self.kv_heads, self.head_dim)
            for row, length in enumerate(self.lengths):
                cache[row, length + self.queries :] = torch.nan
                if self.window is not None:
                    cache[row, : max(0, length - self.window + 1)] = torch.nan
            caches.append(cache.to(device, dtype))
        options: dict[str, Any] = {"window": self.window, "softcap": self.softcap}
        if self.page_size is not None:
            count = batch * self.slots // self.page_size
            table = torch.randperm(count, generator=generator)
            caches = [paged(cache, table.to(device), self.page_size) for cache in caches]
            options["page_table_BP"] = table.reshape(batch, -1).to(device, torch.int32)
        if self.ragged:
            counts = torch.randint(0, self.queries + 1, (batch,), generator=generator, dtype=torch.int32)
            options["query_lengths_B"] = counts.to(device)
        if self.tree:
            options["tree_mask_BTT"] = random_tree(batch, self.queries, generator).to(device)
        if self.sinks:
            options["sinks"] = draw(self.heads).to(device)
        if self.alibi:
            options["alibi"] = (2.0 ** -torch.arange(1.0, self.heads + 1)).to(device)
        present = {name: value for name, value in options.items() if value is not None}
        return [q, *caches, lengths_B.to(device)], present


def paged(cache_BSKD: Tensor, table: Tensor, page_size: int) -> Tensor:
    """The cache as pages, page i of the rows (in order) at place ``table[i]`` of the pool."""
    pages = cache_BSKD.reshape(-1, page_size, *cache_BSKD.shape[2:])
    pool = torch.empty_like(pages)
    pool[table] = pages
    return pool


@functools.cache
def cached_cases() -> tuple[CachedCase, ...]:
    kinds = itertools.cycle((0, 1, 0, 2))
    combinations: list[tuple[str, ...]] = [(name,) for name in FEATURES]
    combinations += [
        pair
        for pair in itertools.combinations(FEATURES, 2)
        if all(len(group & set(pair)) < 2 for group in GROUPS)
    ]
    found = [CachedCase("plain", dtype=dtype) for dtype in DTYPES]
    for features in combinations:
        settings: dict[str, Any] = {}
        for name in features:
            settings |= FEATURES[name]
        family = "alone" if len(features) == 1 else "pair"
        found.append(CachedCase(family, features, dtype=DTYPES[next(kinds)], **settings))
    for queries in (1, 2, 8, 16, 33, 64):
        found.append(CachedCase("queries", queries=queries, dtype=DTYPES[next(kinds)]))
    for head_dim in (16, 32, 40, 96, 128, 192, 256):
        found.append(CachedCase("head dim", head_dim=head_dim, dtype=DTYPES[next(kinds)]))
    long: list[dict[str, Any]] = [
        {"lengths": (0, 1, 1000, 2040), "slots": 2048, "queries": 8},
        {"lengths": (4095,), "slots": 4096, "queries": 1, "page_size": 256},
        {"lengths": (3000, 17), "slots": 4096, "queries": 64, "window": 500},
        {"lengths": (4088, 511, 512, 513), "slots": 4096, "queries": 8, "tree": True, "page_size": 64},
    ]
    found += [CachedCase("long", head_dim=128, heads=8, **more) for more in long]
    return tuple(found)
