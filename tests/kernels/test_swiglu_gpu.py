"""SwiGLU compiled, at real sizes: precision, row invariance, compilation, big offsets."""

from __future__ import annotations

import pytest
import torch

from lit_eff.kernels.swiglu import swiglu, swiglu_reference
from tests.kernels.test_swiglu import draw, everything

pytestmark = pytest.mark.gpu

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("sizes", [(2048, 3072), (300, 577), (5, 11264), (1, 16)], ids=str)
def test_error_is_at_most_twice_torchs(sizes: tuple[int, int], halves: bool, dtype: torch.dtype) -> None:
    tensors = [each.cuda() for each in draw(*sizes, dtype)]
    torch.use_deterministic_algorithms(True)  # poisons what is left unwritten
    try:
        ours = everything(*tensors, halves)
    finally:
        torch.use_deterministic_algorithms(False)
    plain = everything(*tensors, halves, accumulate=dtype)
    exact = everything(*(each.double() for each in tensors), halves, accumulate=torch.float64)
    for got, theirs, true in zip(ours, plain, exact, strict=True):
        error, yardstick = ((each - true).abs().max() for each in (got, theirs))
        assert error <= 2 * yardstick + 1e-3


@pytest.mark.parametrize("outputs", [3072, 577, 24])
def test_rows_do_not_depend_on_their_neighbours(outputs: int) -> None:
    tensors = [each.cuda() for each in draw(640, outputs, BF16)]
    whole = everything(*tensors, False)
    for first, count in ((0, 1), (17, 1), (639, 1), (3, 9), (100, 333)):
        rows = slice(first, first + count)
        for halves in (False, True):
            found = everything(*(each[rows] for each in tensors), halves)
            for got, expected in zip(found, whole, strict=True):
                assert torch.equal(got, expected[rows])


def test_captured_and_compiled() -> None:
    gate, up, _ = (each.cuda() for each in draw(64, 3072, BF16))
    expected = swiglu(gate, up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = swiglu(gate, up)
    out.fill_(torch.nan)
    graph.replay()
    assert torch.equal(out, expected)
    gate.requires_grad_()
    compiled = torch.compile(lambda a, b: swiglu(a, b) * 2, fullgraph=True)
    (found,) = torch.autograd.grad(compiled(gate, up).sum(), gate)
    (wanted,) = torch.autograd.grad((swiglu(gate, up) * 2).sum(), gate)
    assert torch.equal(found, wanted)


def test_offsets_beyond_32_bits() -> None:
    x = torch.zeros(2**16 + 3, 2**15, device="cuda", dtype=BF16)
    x[-2:] = torch.randn(2, 2**15, device="cuda").to(BF16)
    with torch.no_grad():
        torch.testing.assert_close(swiglu(x)[-2:], swiglu_reference(x[-2:]))
