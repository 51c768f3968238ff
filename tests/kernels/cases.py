"""Attention cases that several tests share."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Sizes and mask arguments of one attention call; ``ids`` names how documents or starts are drawn."""

    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    options: dict[str, Any] = field(default_factory=dict)
    documents: int = 0
    starts: tuple[int, ...] | None = None

    def __str__(self) -> str:
        sizes = f"{self.batch}x{self.queries}x{self.keys}x{self.heads}-{self.kv_heads}x{self.head_dim}"
        options = "".join(f"-{name}={value}" for name, value in self.options.items())
        return sizes + options + ("-documents" if self.documents else "") + ("-starts" if self.starts else "")

    def tensors(self, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(zlib.crc32(str(self).encode()))
        sizes = [(self.queries, self.heads)] + 2 * [(self.keys, self.kv_heads)]
        q, k, v = (
            torch.randn(self.batch, rows, heads, self.head_dim, generator=generator, dtype=torch.float64)
            for rows, heads in sizes
        )
        return q.to(device, dtype), k.to(device, dtype), v.to(device, dtype)

    def arguments(self, device: str = "cpu") -> dict[str, Any]:
        arguments = dict(self.options)
        for seed, name in enumerate(("sinks", "alibi")):
            if name in arguments:  # given as how large they are
                generator = torch.Generator().manual_seed(seed)
                values = torch.rand(self.heads, generator=generator) * arguments[name]
                arguments[name] = values.to(device)
        if self.documents:
            generator = torch.Generator().manual_seed(1)
            for name, rows in (("documents_BT", self.queries), ("key_documents_BS", self.keys)):
                ids = torch.randint(0, self.documents, (self.batch, rows), generator=generator)
                arguments[name] = ids.sort(dim=1).values.to(device)
        if self.starts is not None:
            arguments["starts_B"] = torch.tensor(self.starts, device=device)
        return arguments


CASES = [
    Case(1, 128, 128, 2, 2, 64),
    Case(1, 65, 33, 1, 1, 16),
    Case(2, 70, 130, 4, 2, 48, {"causal": True}),
    Case(1, 130, 70, 2, 1, 24, {"causal": True}),  # the first 60 queries see nothing
    Case(1, 200, 200, 2, 2, 32, {"causal": True, "window": 50}),
    Case(1, 150, 150, 1, 1, 32, {"causal": True, "window": 1}),
    Case(1, 140, 140, 2, 1, 16, {"causal": True, "window": 120, "softcap": 2.0}),
    Case(1, 60, 60, 2, 2, 64, {"softcap": 1.0, "scale": 0.5}),
    Case(2, 100, 90, 2, 1, 32, {"causal": True}, documents=3),
    Case(1, 90, 70, 1, 1, 16, documents=4),
    Case(2, 3, 130, 4, 1, 80, starts=(5, 127)),
    Case(2, 40, 100, 2, 2, 128, {"window": 33}, starts=(0, 60)),
    Case(1, 1, 1, 1, 1, 16, {"causal": True}),
]
