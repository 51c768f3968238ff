"""The compiled kernels on a GPU: precision against torch's own, determinism, large offsets, torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_eff.kernels.attention import attention, attention_reference
from tests.kernels.cases import CASES, Case

pytestmark = pytest.mark.gpu

LARGE = [
    Case(2, 1024, 1024, 8, 8, 64, {"causal": True}),
    Case(2, 777, 1111, 8, 2, 128, {"causal": True}),
    Case(1, 1500, 1500, 4, 1, 96, {"causal": True, "window": 300}),
    Case(2, 900, 900, 4, 2, 64, {"causal": True, "softcap": 20.0}, documents=5),
    Case(4, 8, 2048, 8, 2, 128, starts=(0, 100, 2000, 2040)),
    Case(2, 1000, 1000, 4, 4, 80),
]


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


def test_gradients_are_the_same_bits_every_time() -> None:
    case = LARGE[1]
    tensors = case.tensors(torch.bfloat16, "cuda")
    dout = torch.randn_like(tensors[0])
    first, second = (run(attention, tensors, case, dout) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


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

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attention(q, k, v, causal=True)
        assert isinstance(out, Tensor)
        return out.sum()

    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*inputs), inputs)
    for got, expected in zip(compiled, torch.autograd.grad(loss(*inputs), inputs), strict=True):
        torch.testing.assert_close(got, expected)
