"""The Triton kernels in the interpreter against float64 autograd through the reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_eff.kernels.attention import attention, attention_reference
from tests.kernels.cases import CASES, Case

pytestmark = pytest.mark.usefixtures("interpreter")


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    """torch.empty yields NaN in deterministic mode: an element that a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def with_gradients(function, tensors, case: Case, dout: Tensor, dlse: Tensor, **more) -> list[Tensor]:
    """Output, finite log-sum-exp and the three gradients."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out, lse = function(*leaves, return_lse=True, **case.arguments(), **more)
    seen = lse.isfinite()
    loss = (out * dout.to(out.dtype)).sum() + (lse[seen] * dlse.to(lse.dtype)[seen]).sum()
    loss.backward()
    return [out.detach(), lse.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_matches_float64(case: Case) -> None:
    tensors = case.tensors(torch.float32)
    dout = torch.randn(tensors[0].shape)
    dlse = torch.randn(case.batch, case.heads, case.queries)
    got = with_gradients(attention, tensors, case, dout, dlse)
    doubles = [tensor.double() for tensor in tensors]
    expected = with_gradients(
        attention_reference, doubles, case, dout.double(), dlse.double(), accumulate=torch.float64
    )
    for name, ours, theirs in zip(("out", "lse", "dq", "dk", "dv"), got, expected, strict=True):
        torch.testing.assert_close(
            ours.double(), theirs, rtol=1e-5, atol=5e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("case", [CASES[2], CASES[6]], ids=str)
def test_float16_is_as_good_as_torch(case: Case) -> None:
    """Error against float64 at most twice that of PyTorch's own float16 arithmetic."""
    tensors = case.tensors(torch.float16)
    dout = torch.randn(tensors[0].shape).half()
    dlse = torch.randn(case.batch, case.heads, case.queries).half()
    got = with_gradients(attention, tensors, case, dout, dlse)
    plain = with_gradients(attention_reference, tensors, case, dout, dlse, accumulate=torch.float16)
    doubles = [tensor.double() for tensor in tensors]
    exact = with_gradients(
        attention_reference, doubles, case, dout.double(), dlse.double(), accumulate=torch.float64
    )
    for name, ours, torchs, true in zip(("out", "lse", "dq", "dk", "dv"), got, plain, exact, strict=True):
        error, allowed = (ours - true).abs().max(), 2 * (torchs - true).abs().max() + 1e-4
        assert error <= allowed, f"{name}: {error} > {allowed}"


def test_strides_of_any_kind() -> None:
    """Slices of a fused projection, a transposed layout, and NaN all around what may be read."""
    fused = torch.full((2, 60, 3, 2, 48), torch.nan)
    fused[:, :50, :, :, :40] = torch.randn(2, 50, 3, 2, 40)
    q = fused[:, :50, 0, :, :40]
    k = fused[:, :50, 1, :, :40]
    v = torch.randn(2, 2, 40, 50).permute(0, 3, 1, 2)
    documents = torch.randint(0, 2, (50, 2)).t()
    got = attention(q, k, v, causal=True, documents_BT=documents)
    expected = attention_reference(q, k, v, causal=True, documents_BT=documents)
    torch.testing.assert_close(got, expected)
    # An expanded gradient (all strides zero), as from a sum.
    leaf = v.clone().requires_grad_()
    attention(q, k, leaf, causal=True).sum().backward()
    reference_leaf = v.clone().requires_grad_()
    attention_reference(q, k, reference_leaf, causal=True).sum().backward()
    torch.testing.assert_close(leaf.grad, reference_leaf.grad)


IDS = {
    "documents_BT": torch.zeros(1, 20, dtype=torch.int64),
    "key_documents_BS": torch.zeros(1, 24, dtype=torch.int64),
    "starts_B": torch.tensor([4]),
}
RULE = {
    "sinks_H": torch.tensor([0.5, 1.0], requires_grad=True),
    "alibi_H": torch.tensor([0.5, 1.0]),
    "seed": torch.tensor([3]),
    "dropout_p": 0.5,
    "window": 9,
    "softcap": 2.0,
}
PACKING = {
    "cu_seqlens_q": torch.tensor([0, 13, 20]),
    "cu_seqlens_k": torch.tensor([0, 4, 24]),
    "max_seqlen_q": 13,
    "max_seqlen_k": 20,
}


@pytest.mark.parametrize("given", [{}, IDS, RULE, RULE | PACKING], ids=["plain", "ids", "rule", "packed"])
def test_operator_check(given: dict[str, Any]) -> None:
    """Schema, fake tensors, autograd registration and ahead-of-time dispatch with dynamic shapes."""
    from lit_eff.kernels.attention.operator import attention_backward, attention_forward

    q = torch.randn(1, 20, 2, 16, requires_grad=True)
    k = torch.randn(1, 24, 1, 16, requires_grad=True)
    v = torch.randn(1, 24, 1, 16, requires_grad=True)
    names = [argument.name for argument in torch.ops.lit_eff.attention_forward.default._schema.arguments[3:]]
    absent = {"max_seqlen_q": 0, "max_seqlen_k": 0, "scale": 0.25, "causal": True, "dropout_p": 0.0}
    arguments = [(absent | given).get(name) for name in names]
    torch.library.opcheck(attention_forward, (q, k, v, *arguments))
    with torch.no_grad():
        out, lse = attention_forward(q, k, v, *arguments)
        detached = [each.detach() if isinstance(each, Tensor) else each for each in (q, k, v, *arguments)]
    torch.library.opcheck(attention_backward, (out, lse, out, lse, *detached))


def test_traces_without_graph_breaks() -> None:
    def call(q: Tensor, k: Tensor, seed: Tensor, sinks: Tensor) -> Tensor:
        out = attention(q, k, k, causal=True, dropout_p=0.5, seed=seed, sinks=sinks)
        assert isinstance(out, Tensor)
        return out

    traced = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    inputs = torch.randn(1, 30, 2, 16), torch.randn(1, 30, 1, 16), torch.tensor([7]), torch.zeros(2)
    torch.testing.assert_close(traced(*inputs), call(*inputs))


def test_seeds_of_any_kind_are_traced() -> None:
    """An int (a constant of the graph) and none (drawn inside it, so different every time)."""
    q, k = torch.randn(1, 30, 2, 16), torch.randn(1, 30, 1, 16)
    fixed = torch.compile(
        lambda q, k: attention(q, k, k, dropout_p=0.5, seed=5), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(fixed(q, k), attention(q, k, k, dropout_p=0.5, seed=5))
    drawn = torch.compile(lambda q, k: attention(q, k, k, dropout_p=0.5), fullgraph=True, backend="aot_eager")
    assert not torch.equal(drawn(q, k), drawn(q, k))


def test_autocast_casts_the_inputs() -> None:
    q = torch.randn(1, 8, 1, 16)
    with torch.autocast("cpu", dtype=torch.float16):
        out = attention(q, q, q)
    assert isinstance(out, Tensor)
    assert out.dtype == torch.float16


def test_lse_alone_has_a_gradient() -> None:
    q, k = torch.randn(1, 8, 1, 16, requires_grad=True), torch.randn(1, 9, 1, 16)
    attention(q, k, k, return_lse=True)[1].sum().backward()
    got, q.grad = q.grad, None
    attention_reference(q, k, k, return_lse=True)[1].sum().backward()
    torch.testing.assert_close(got, q.grad)
