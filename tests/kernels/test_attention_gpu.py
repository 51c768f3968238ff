"""The compiled portable kernels on a GPU: precision against torch's own, determinism, large offsets, compile.

Every feature alone and in pairs stands in the generated cases; here are the base forms, and what only a
device shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_eff.kernels.attention import (
    attention,
    attention_reference,
    attention_varlen,
    attention_varlen_reference,
    explain,
    use_path,
)
from lit_eff.kernels.attention.dropout import kept_weights
from tests.kernels.cases import CASES, Case

pytestmark = pytest.mark.gpu

LARGE = [
    Case(2, 1024, 1024, 8, 8, 64, {"causal": True}),
    Case(2, 777, 1111, 8, 2, 128, {"causal": True}),
    Case(1, 1500, 1500, 4, 1, 96, {"causal": True, "window": 300}),
    Case(2, 900, 900, 4, 2, 64, {"causal": True, "softcap": 20.0}, documents=5),
    Case(4, 8, 2048, 8, 2, 128, starts=(0, 100, 2000, 2040)),
    Case(2, 1000, 1000, 4, 4, 80),
    Case(1, 500, 600, 2, 1, 256, {"causal": True, "sinks": 3.0}),
    Case(1, 500, 400, 4, 2, 64, {"window": 90, "alibi": 1.0, "dropout_p": 0.2, "seed": 5}),
    Case(1, 900, 900, 2, 2, 128, {"dropout_p": 0.2, "seed": 5, "sinks": 2.0}, documents=4),
]


@pytest.fixture(autouse=True)
def _portable() -> Iterator[None]:
    with use_path("portable"):
        yield


def run(function: Any, tensors: tuple[Tensor, ...], case: Case, dout: Tensor, **more: Any) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = function(*leaves, **case.arguments("cuda"), **more)
    out.backward(dout.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES + LARGE, ids=str)
def test_error_is_at_most_twice_torchs(case: Case, dtype: torch.dtype) -> None:
    """Against float32 (float64 for float32 inputs); the yardstick is PyTorch's in the input dtype."""
    tensors = case.tensors(dtype, "cuda")
    wide = torch.float64 if dtype == torch.float32 else torch.float32
    dout = torch.randn_like(tensors[0])
    got = run(attention, tensors, case, dout)
    plain = run(attention_reference, tensors, case, dout, accumulate=dtype)
    exact = run(attention_reference, tuple(t.to(wide) for t in tensors), case, dout, accumulate=wide)
    small = 1e-5 if dtype == torch.float32 else 1e-3
    for name, ours, torchs, true in zip(("out", "dq", "dk", "dv"), got, plain, exact, strict=True):
        assert ours.isfinite().all(), name
        error, allowed = (ours - true).abs().max(), 2 * (torchs - true).abs().max() + small
        assert error <= allowed, f"{name}: {error} > {allowed}"


def test_packed_sequences() -> None:
    lengths = torch.tensor([0, 300, 0, 1, 77, 500])
    cu = lengths.cumsum(0).to("cuda", torch.int32)
    q, k, v = (torch.randn(int(lengths.sum()), h, 64, device="cuda").bfloat16() for h in (4, 2, 2))
    options: dict[str, Any] = {"causal": True, "dropout_p": 0.1, "seed": 1}
    leaves = [tensor.requires_grad_() for tensor in (q, k, v)]
    out = attention_varlen(*leaves, cu, cu, max_seqlen_q=500, max_seqlen_k=500, **options)
    exact = attention_varlen_reference(*leaves, cu, cu, **options)
    assert isinstance(out, Tensor)
    assert isinstance(exact, Tensor)
    dout = torch.randn_like(out)
    torch.testing.assert_close(out, exact, rtol=2e-2, atol=2e-2)
    pairs = zip(torch.autograd.grad(out, leaves, dout), torch.autograd.grad(exact, leaves, dout), strict=True)
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_dropped_weights_are_the_definitions(head_dim: int, dtype: torch.dtype) -> None:
    """With values that are the identity, the output shows every weight; dV shows the backward's mask."""
    q = k = torch.zeros(2, 200, 2, head_dim, device="cuda", dtype=dtype)[:, :head_dim]
    q = torch.zeros(2, 200, 2, head_dim, device="cuda", dtype=dtype)
    v = torch.eye(head_dim, device="cuda", dtype=dtype)[None, :, None].expand(2, -1, 2, -1)
    v = v.clone().requires_grad_()
    seed = torch.tensor([2**40 + 5], device="cuda")
    out = attention(q, k, v, dropout_p=0.25, seed=seed)
    assert isinstance(out, Tensor)
    kept = kept_weights(0.25, seed, (2, 2, 200, head_dim), device=q.device)
    assert out.ne(0).equal(kept.transpose(1, 2))
    (dv,) = torch.autograd.grad(out.float().sum(), v)
    expected = kept.sum(dim=2).transpose(1, 2) / head_dim / 0.75
    torch.testing.assert_close(dv[..., 0].float(), expected, rtol=1e-2, atol=1e-2)


def test_gradients_are_the_same_bits_every_time() -> None:
    case = LARGE[1]
    tensors = case.tensors(torch.bfloat16, "cuda")
    dout = torch.randn_like(tensors[0])
    first, second = (run(attention, tensors, case, dout) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_peak_memory_is_outputs_and_statistics() -> None:
    """Forward: output and log-sum-exp. Backward: three gradients and delta."""
    q, k, v = (
        torch.randn(2, 2048, 8, 64, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3)
    )
    documents = torch.arange(2048, device="cuda").expand(2, -1) // 300
    dout = torch.randn(2, 2048, 8, 64, device="cuda", dtype=torch.bfloat16)
    attention(q, k, v, causal=True, documents_BT=documents).backward(dout)  # loads the kernels
    size, statistic = q.numel() * 2, 2 * 8 * 2048 * 4
    slack = 2**16  # the document ranges, and blocks of 512 bytes
    q.grad = k.grad = v.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = attention(q, k, v, causal=True, documents_BT=documents)
    assert torch.cuda.max_memory_allocated() - before <= size + statistic + slack
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(out, (q, k, v), dout)
    assert torch.cuda.max_memory_allocated() - before <= 3 * size + statistic + slack


def test_graph_replays_with_a_refilled_seed() -> None:
    q, k = (torch.randn(1, 256, 2, 64, device="cuda").bfloat16() for _ in range(2))
    seed = torch.tensor([1], device="cuda")
    attention(q, k, k, dropout_p=0.5, seed=seed)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(q, k, k, dropout_p=0.5, seed=seed)
    assert isinstance(out, Tensor)
    for value in (1, 2):
        seed.fill_(value)
        graph.replay()
        assert torch.equal(out, attention(q, k, k, dropout_p=0.5, seed=value))


def test_offsets_beyond_32_bits() -> None:
    """A cache of more than 2**31 elements, attended at its far end."""
    batch, keys, head_dim = 3, 2**23, 128
    k = torch.zeros(batch, keys, 1, head_dim, dtype=torch.bfloat16, device="cuda")
    k[-1, -256:] = torch.randn(256, 1, head_dim, device="cuda").bfloat16()
    q = torch.randn(batch, 16, 1, head_dim, device="cuda").bfloat16()
    starts = torch.tensor([0, 10, keys - 16], device="cuda")
    got = attention(q, k, k, starts_B=starts, window=256)
    near = k[-1:, -256 - 16 :]
    expected = attention_reference(
        q[-1:], near, near, starts_B=torch.tensor([near.shape[1] - 16], device="cuda"), window=256
    )
    assert isinstance(got, Tensor)
    torch.testing.assert_close(got[-1:], expected, rtol=2e-2, atol=2e-2)


def test_compiles_without_graph_breaks() -> None:
    shape = (2, 200, 4, 64)
    # Apart, because compiled code may add one tensor's three gradients in another order.
    inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    sinks = torch.randn(4, device="cuda", requires_grad=True)
    seed = torch.tensor([3], device="cuda")

    def loss(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
        out = attention(q, k, v, causal=True, sinks=sinks, dropout_p=0.1, seed=seed)
        assert isinstance(out, Tensor)
        return out.sum()

    leaves = [*inputs, sinks]
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*leaves), leaves)
    for got, expected in zip(compiled, torch.autograd.grad(loss(*leaves), leaves), strict=True):
        torch.testing.assert_close(got, expected)


def test_explain_says_what_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIT_EFF_ATTENTION", raising=False)
    q = torch.zeros(1, 8, 1, 64, device="cuda", dtype=torch.bfloat16)
    assert str(explain(q, q, q)) == "portable (forced)"
    with use_path(None):
        path = explain(q, q, q)
    assert path.name in ("portable", "hopper")
    assert path.reason != "forced"
