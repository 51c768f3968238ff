"""SwiGLU in the interpreter and compiled for GPUs that are not here."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.kernels.swiglu import swiglu, swiglu_reference
from tests.kernels.compiling import compile_all

F16, F32, F64 = torch.float16, torch.float32, torch.float64


def draw(rows: int, outputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Gate, up and gradient, with a few gates so large that their exponentials overflow."""
    generator = torch.Generator().manual_seed(rows * 7919 + outputs)
    gate, up, dout = (
        3 * torch.randn(rows, outputs, generator=generator, dtype=F64).to(dtype) for _ in range(3)
    )
    gate[::3, ::2] *= 100
    return gate, up, dout


def everything(gate: Tensor, up: Tensor, dout: Tensor, halves: bool, **options: Any) -> list[Tensor]:
    """Output and gradients of gate and up; ``options`` are the reference's, which is run if there are any."""
    function: Any = swiglu_reference if options else swiglu
    leaves = [each.detach().clone().requires_grad_() for each in (gate, up)]
    if halves:
        leaves = [torch.cat([gate, up], dim=-1).detach().requires_grad_()]
    out = function(*leaves, **options)
    found = torch.autograd.grad(out, leaves, dout)
    return [out.detach(), *(found[0].chunk(2, dim=-1) if halves else found)]


@pytest.mark.usefixtures("interpreter", "poisoned")
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("sizes", [(5, 48), (1, 1), (70, 17), (3, 5000), (33, 130)], ids=str)
def test_float32_matches_float64(sizes: tuple[int, int], halves: bool) -> None:
    tensors = draw(*sizes, F32)
    exact = everything(*(each.double() for each in tensors), halves, accumulate=F64)
    for got, expected in zip(everything(*tensors, halves), exact, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=2e-6, atol=1e-5)


@pytest.mark.usefixtures("interpreter", "poisoned")
def test_float16_is_as_good_as_torch() -> None:
    tensors = draw(40, 96, F16)
    exact = everything(*(each.double() for each in tensors), False, accumulate=F64)
    plain = everything(*tensors, False, accumulate=F16)
    for ours, theirs, true in zip(everything(*tensors, False), plain, exact, strict=True):
        assert ours.dtype == F16
        assert (ours - true).abs().max() <= 2 * (theirs - true).abs().max() + 1e-6


def test_reference_is_torch() -> None:
    gate, up, _ = draw(4, 6, F32)
    assert torch.equal(swiglu_reference(gate, up), F.silu(gate) * up)
    with mock.patch("lit_eff.kernels.linear.operator.INTERPRETED", False):
        assert torch.equal(swiglu(torch.cat([gate, up], dim=-1)), F.silu(gate) * up)


@pytest.mark.usefixtures("interpreter")
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(0, 40), outputs=st.integers(1, 300), halves=st.booleans())
def test_any_sizes(rows: int, outputs: int, halves: bool) -> None:
    tensors = draw(rows, outputs, F32)
    exact = everything(*(each.double() for each in tensors), halves, accumulate=F64)
    for got, expected in zip(everything(*tensors, halves), exact, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.usefixtures("interpreter")
def test_rows_do_not_depend_on_their_neighbours() -> None:
    tensors = draw(37, 65, F32)
    whole = everything(*tensors, False)
    for first, count in ((0, 1), (7, 1), (36, 1), (5, 30)):
        rows = slice(first, first + count)
        for got, expected in zip(everything(*(each[rows] for each in tensors), True), whole, strict=True):
            assert torch.equal(got, expected[rows])


@pytest.mark.usefixtures("interpreter")
def test_strides_and_leading_dimensions() -> None:
    gate, up, dout = (each.view(2, 3, 40) for each in draw(6, 40, F32))
    expected = everything(gate, up, dout, False)
    wide = torch.randn(2, 3, 100)
    wide[..., 3:43], wide[..., 50:90] = gate, up
    turned = (each.permute(2, 0, 1).contiguous().permute(1, 2, 0) for each in (gate, up))
    views = wide[..., 3:43], wide[..., 50:90]
    for got in (swiglu(*views), swiglu(views[0], up), swiglu(*turned)):
        assert got.is_contiguous()
        assert torch.equal(got, expected[0])
    assert torch.equal(swiglu(gate[0, 0], up[0, 0]), expected[0][0, 0])
    leaf = gate.clone().requires_grad_()
    swiglu(leaf, up).sum().backward()  # a gradient without strides
    ones = everything(gate, up, torch.ones_like(dout), False)
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, ones[1])


@pytest.mark.usefixtures("interpreter")
def test_operator_check_and_tracing() -> None:
    from lit_eff.kernels.swiglu.operator import swiglu_backward, swiglu_forward

    gate, up, dout = draw(3, 20, F32)
    leaves = [each.requires_grad_() for each in (gate, up)]
    torch.library.opcheck(swiglu_forward, (gate, up))
    torch.library.opcheck(swiglu_forward, (gate, None))
    with torch.no_grad():
        for other in (up, None):
            grad = dout if other is not None else dout[:, :10]
            torch.library.opcheck(
                swiglu_backward, (grad, gate, other), test_utils=["test_schema", "test_faketensor"]
            )
    traced = torch.compile(lambda a, b: swiglu(a, b) * a, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(traced(gate, up), leaves, dout)
    expected = torch.autograd.grad(swiglu(gate, up) * gate, leaves, dout)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


X = torch.randn(2, 16)
BAD: list[tuple[tuple[Tensor, ...], str]] = [
    ((X[:, :0], X[:, :0]), "F at least 1"),
    ((torch.tensor(1.0),), r"2 F\) of gates and ups"),
    ((X[:, :15],), r"got \(2, 15\)"),
    ((X.double(), X.double()), "float64 is not"),
    ((X, X[:1]), "gate and up alike"),
    ((X, X.half()), "gate and up alike"),
    ((X, X.to("meta")), "up is on meta"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_refusals(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        swiglu(*arguments)


PROGRAM = """
import dataclasses, json, sys, torch
from lit_eff.kernels.swiglu.kernel import backward_launch, forward_launch
from lit_eff.profiling.compiled import compile_launch
torch.set_default_device("meta")
for outputs, capability in json.loads(sys.argv[1]):
    x = torch.empty(4096, outputs, dtype=torch.bfloat16)
    for launch in (forward_launch(x, x, x), backward_launch(x, x, x, x, x)):
        print(json.dumps(dataclasses.asdict(compile_launch(launch, capability)) | {"outputs": outputs}))
"""


def test_forms_do_not_spill(tmp_path: Path) -> None:
    forms = [(outputs, capability) for outputs in (17, 100, 3072) for capability in (80, 90)]
    for each in compile_all(PROGRAM, forms, tmp_path):
        assert each["spill_store_bytes"] == 0, each
        assert each["registers_per_thread"] <= 128, each
        assert each["shared_memory_bytes"] == 0, each
