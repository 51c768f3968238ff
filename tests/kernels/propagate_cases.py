"""Calls of propagation that several tests share."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_eff.kernels.linear import Norm, skinny_linear
from lit_eff.kernels.propagate import propagate, propagate_reference
from lit_eff.kernels.propagate.reference import layer_norm_of
from lit_eff.kernels.rope import rope_cache_write, rotary_tables
from tests.kernels.cache_cases import paged
from tests.kernels.linear_cases import widened


@dataclass(frozen=True)
class PropagateCase:
    """Sizes and features of one call; ``rotary`` channels turn, ``page`` is the page size."""

    layers: int = 2
    batch: int = 3
    queries: int = 2
    channels: int = 72
    kv_heads: int = 2
    head_dim: int = 32
    capacity: int = 9
    rotary: int = 32
    norm: str | None = "rms"  # rms, rms_plain (no gain), layer
    bias: bool = False
    page: int = 0
    ragged: bool = False
    positions: bool = False
    k_norm: bool = False

    def draw(self, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
        """All arguments; the weights are the end of a stack of fused ones."""
        generator = torch.Generator().manual_seed(zlib.crc32(str(self).encode()))

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

        def below(high: int, *shape: int) -> Tensor:
            return torch.randint(0, high, shape, generator=generator).to(device)

        outputs = 2 * self.kv_heads * self.head_dim
        cache = (self.layers, self.batch, self.capacity, self.kv_heads, self.head_dim)
        lengths_B = below(self.capacity - self.queries + 1, self.batch)
        lengths_B[0] = self.capacity - self.queries
        arguments: dict[str, Any] = {
            "hidden_BTC": 3 * randn(self.batch, self.queries, self.channels),
            "weight_LOC": self.channels**-0.5 * randn(self.layers, outputs + 40, self.channels)[:, 40:],
            "k_cache": randn(*cache),
            "v_cache": randn(*cache),
            "lengths_B": lengths_B,
        }
        if self.norm is not None:
            gain = None if self.norm == "rms_plain" else 1 + 0.3 * randn(self.layers, self.channels)
            shift = randn(self.layers, self.channels) if self.norm == "layer" else None
            arguments["norm"] = Norm(gain, shift, 1e-5, self.norm == "layer")
        if self.bias:
            arguments["bias_LO"] = randn(self.layers, outputs)
        if self.rotary:
            frequencies = 1.0 / 100.0 ** (torch.arange(0, self.rotary, 2) / self.rotary)
            arguments["tables"] = rotary_tables(frequencies.to(device), self.capacity)
        if self.ragged:
            arguments["query_lengths_B"] = below(self.queries + 1, self.batch).int()
        if self.positions:
            arguments["positions_BT"] = below(self.capacity, self.batch, self.queries)
        if self.k_norm:
            arguments["k_norm_LD"] = 1 + 0.3 * randn(self.layers, self.head_dim)
        return layers_paged(arguments, self.page) if self.page else arguments


def layers_paged(arguments: dict[str, Any], page_size: int) -> dict[str, Any]:
    """The same call on shuffled pages, one table for all layers."""
    names = ("k_cache", "v_cache")
    layers = [
        paged({name: arguments[name][layer] for name in names}, page_size)
        for layer in range(arguments["k_cache"].shape[0])
    ]
    stacks = {name: torch.stack([each[name] for each in layers]) for name in names}
    return arguments | stacks | {"page_table_BP": layers[0]["page_table_BP"]}


def with_caches(function: Any, arguments: dict[str, Any], **more: Any) -> tuple[Tensor, Tensor]:
    """Both caches, of which the call gets copies."""
    caches = {name: arguments[name].clone() for name in ("k_cache", "v_cache")}
    function(**(arguments | caches | more))
    return caches["k_cache"], caches["v_cache"]


def run(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return with_caches(propagate, arguments)


def exact(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return with_caches(propagate_reference, widened(arguments), accumulate=torch.float64)


def layer_by_layer(
    hidden_BTC: Tensor,
    weight_LOC: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths_B: Tensor,
    *,
    norm: Norm | None = None,
    bias_LO: Tensor | None = None,
    k_norm_LD: Tensor | None = None,
    **where: Any,
) -> None:
    """By the kernels that a layer runs: the skinny linear, then the rotation with the cache write."""
    batch, queries, channels = hidden_BTC.shape
    for layer, weight_OC in enumerate(weight_LOC):
        kv_NO = skinny_linear(
            hidden_BTC.reshape(-1, channels),
            weight_OC,
            bias=None if bias_LO is None else bias_LO[layer],
            norm=layer_norm_of(norm, layer),
        )
        k_BTKD, v_BTKD = kv_NO.view(batch, queries, -1, k_cache.shape[-1]).chunk(2, dim=2)
        gain_D = None if k_norm_LD is None else k_norm_LD[layer]
        rope_cache_write(
            k_BTKD, k_BTKD, v_BTKD, k_cache[layer], v_cache[layer], lengths_B, k_norm_D=gain_D, **where
        )


CASES = [
    PropagateCase(),
    PropagateCase(norm=None, rotary=0),
    PropagateCase(norm="layer", rotary=12, bias=True),
    PropagateCase(layers=1, batch=1, queries=1, norm="rms_plain"),
    PropagateCase(batch=5, queries=4, page=4, ragged=True, positions=True),
    PropagateCase(kv_heads=3, head_dim=22, rotary=6, k_norm=True, channels=100),
    PropagateCase(kv_heads=1, head_dim=80, rotary=80, k_norm=True, bias=True, page=2, ragged=True),
    PropagateCase(layers=3, kv_heads=3, head_dim=18, rotary=18, channels=33),
]
