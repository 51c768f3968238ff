"""Kept launches on a GPU: a call like one before yields the bits that it yields by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_eff.kernels.attention import attention, attention_varlen, attention_with_cache, use_path
from lit_eff.profiling.replay import LaunchCache
from tests.kernels.cache_cases import CacheCase
from tests.kernels.cases import Case

pytestmark = pytest.mark.gpu

CASES = [
    Case(2, 1024, 1024, 8, 8, 64, {"causal": True}),
    Case(2, 1024, 1024, 8, 2, 128),
    Case(2, 777, 1111, 8, 2, 128, {"causal": True, "window": 300, "softcap": 20.0, "sinks": 2.0}),
    Case(2, 500, 400, 4, 2, 64, {"alibi": 1.0, "dropout_p": 0.2, "seed": 5}, documents=5),
    Case(4, 8, 2048, 8, 2, 128, starts=(0, 100, 2000, 2040)),
]
CACHE_CASES = [
    CacheCase(3, 8, 32, 8, 128, 5000),
    CacheCase(3, 1, 32, 8, 128, 5000, {"paged": 16, "ragged": True}),
    CacheCase(3, 5, 14, 2, 96, 4100, {"paged": 64, "tree": True, "window": 700, "sinks": True}),
]


def operators() -> list[Any]:
    from lit_eff.kernels.attention import operator
    from lit_eff.kernels.attention.with_cache import operator as cache_operator

    return [operator, cache_operator]


def keep(monkeypatch: pytest.MonkeyPatch, size: int) -> list[LaunchCache]:
    caches = []
    for module in operators():
        caches.append(LaunchCache(size))
        monkeypatch.setattr(module, "LAUNCHES", caches[-1])
    return caches


def differentiate(tensors: tuple[Tensor, ...], options: dict[str, Any]) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = attention(*leaves, **options)
    assert isinstance(out, Tensor)
    out.backward(torch.linspace(-1, 1, out.numel(), device="cuda").view_as(out).to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("path", [None, "portable"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(case: Case, path: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = case.tensors(torch.bfloat16, "cuda")
    options = case.arguments("cuda")
    with use_path(path):
        keep(monkeypatch, 0)
        alone = differentiate(tensors, options)
        (cache, _) = keep(monkeypatch, 8)
        differentiate(tuple(torch.randn_like(tensor) for tensor in tensors), options)
        before = len(cache)
        replayed = differentiate(tensors, options)
    assert len(cache) == before == 2
    assert all(torch.equal(a, b) for a, b in zip(alone, replayed, strict=True))


def test_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (900, 4, 64)
    first, second = (
        [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3)] for _ in range(2)
    )
    lengths = [torch.tensor([0, 100, 900], device="cuda"), torch.tensor([0, 600, 900], device="cuda")]

    def run(tensors: list[Tensor], cu_seqlens: Tensor) -> Tensor:
        out = attention_varlen(
            *tensors, cu_seqlens, cu_seqlens, max_seqlen_q=900, max_seqlen_k=900, causal=True
        )
        assert isinstance(out, Tensor)
        return out

    keep(monkeypatch, 0)
    alone = run(second, lengths[1])
    (cache, _) = keep(monkeypatch, 8)
    run(first, lengths[0])
    assert torch.equal(run(second, lengths[1]), alone)
    assert len(cache) == 1


@pytest.mark.parametrize("case", CACHE_CASES, ids=str)
def test_with_cache(case: CacheCase, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = case.draw(torch.bfloat16, "cuda")
    keep(monkeypatch, 0)
    alone = attention_with_cache(**arguments)
    (_, cache) = keep(monkeypatch, 8)
    other = dict(arguments, q_BTHD=torch.randn_like(arguments["q_BTHD"]))
    other["lengths_B"] = arguments["lengths_B"] // 2
    attention_with_cache(**other)
    replayed = attention_with_cache(**arguments)
    assert isinstance(alone, Tensor)
    assert isinstance(replayed, Tensor)
    assert torch.equal(alone, replayed)
    assert len(cache) == 1
