"""Norms compiled, at real sizes: precision, row invariance, equal gradients each run, graphs, big offsets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_eff.kernels.norm import layer_norm, rms_norm
from tests.kernels.norm_cases import NormCase

pytestmark = pytest.mark.gpu

BF16, F32 = torch.bfloat16, torch.float32
CASES = [
    NormCase(rows, channels, centered, True, centered, residual, BF16 if residual == F32 else None)
    for rows, channels in ((16_384, 768), (4096, 2048), (300, 577), (2000, 4096), (64, 16_384), (1, 100))
    for centered in (False, True)
    for residual in (None, BF16, F32)
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_is_at_most_twice_torchs(case: NormCase) -> None:
    tensors = case.draw(BF16, "cuda")
    ours, plain, exact = case.ours(tensors), case.plain(tensors), case.exact(tensors)
    for name, got in ours.items():
        assert got.dtype == plain[name].dtype
        error, yardstick = ((each[name] - exact[name]).abs().max() for each in (ours, plain))
        assert error <= 2 * yardstick + 1e-3, name


@pytest.mark.parametrize("channels", [100, 576, 577, 768, 2048, 4096, 16_384])
@pytest.mark.parametrize("centered", [False, True], ids=["rms", "layer"])
def test_rows_do_not_depend_on_their_neighbours(channels: int, centered: bool) -> None:
    case = NormCase(640, channels, centered, residual=BF16, shift=centered)
    tensors = case.draw(BF16, "cuda")
    whole = case.run(tensors)
    for first, count in ((0, 1), (17, 1), (639, 1), (3, 9), (5, 16), (100, 333)):
        rows = slice(first, first + count)
        cut: dict[str, Any] = {
            name: None if each is None else each[rows] if each.ndim == 2 else each
            for name, each in tensors.items()
        }
        for got, expected in zip(case.run(cut), whole, strict=True):
            assert torch.equal(got, expected[rows])
    wide = torch.empty(640, channels + 40, device="cuda", dtype=BF16)
    wide[:, 3 : channels + 3] = tensors["x"]
    strided = case.run({**tensors, "x": wide[:, 3 : channels + 3]})
    assert all(torch.equal(got, expected) for got, expected in zip(strided, whole, strict=True))


def test_gradients_are_the_same_from_run_to_run() -> None:
    case = NormCase(16_384, 768, centered=True, shift=True, residual=BF16)
    tensors = case.draw(BF16, "cuda")
    first, second = case.ours(tensors), case.ours(tensors)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_captured_and_compiled() -> None:
    x, weight = torch.randn(8, 768, device="cuda", dtype=BF16), torch.randn(768, device="cuda", dtype=BF16)
    expected = rms_norm(x, weight, 1e-5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = rms_norm(x, weight, 1e-5)
    out.fill_(torch.nan)
    graph.replay()
    assert torch.equal(out, expected)
    compiled = torch.compile(lambda x: layer_norm(x, weight, weight, 1e-5) * 2, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer_norm(x, weight, weight, 1e-5) * 2)


def test_offsets_beyond_32_bits() -> None:
    rows, channels = 2**17 + 5, 16_384
    x = torch.empty(rows, channels, device="cuda", dtype=BF16)
    x[-3:] = torch.randn(3, channels, device="cuda", dtype=BF16)
    with torch.no_grad():
        tail = rms_norm(x, None, 1e-5)[-3:].clone()
    assert torch.equal(tail, rms_norm(x[-3:], None, 1e-5))
