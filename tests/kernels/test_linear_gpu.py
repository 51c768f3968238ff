"""Skinny linear and exit confidence, compiled and at real sizes: precision, bits of rows, graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_eff.kernels.confidence import ExitConfidence, exit_confidence, exit_confidence_reference
from lit_eff.kernels.linear import skinny_linear, skinny_linear_reference
from tests.kernels.linear_cases import EVERYTHING, LinearCase, cases, exact

pytestmark = pytest.mark.gpu

ROW_COUNTS = (1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 65, 127, 128, 200, 639, 640)
WEIGHTS = [(2048, 2048), (2048, 5632), (11264, 2048), (4096, 4096), (576, 576), (49152, 576), (1000, 600)]
LARGE = [
    LinearCase(640, 4096, 1024),
    LinearCase(640, 2048, 2048, bias=True, residual=True, norm="rms"),
    LinearCase(640, 2048, 11264, activation="swiglu", norm="rms"),
    LinearCase(640, 576, 1536, activation="gelu_tanh", norm="layer", bias=True),
    LinearCase(640, 1024, 2048, groups=1, norm="rms_plain"),
    LinearCase(640, 2048, 4096, groups=16, activation="silu"),
    LinearCase(640, 100, 70, residual=True, activation="gelu"),
]


def same(got: Tensor, expected: Tensor) -> bool:
    """The same bits, the sign of zero included."""
    return torch.equal(got.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


def rows_of(arguments: dict[str, Any], rows: slice) -> dict[str, Any]:
    names = ("x_NC", "hidden_NC", "residual", "thresholds")
    return arguments | {name: arguments[name][rows] for name in names if arguments.get(name) is not None}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "case", [*cases(5), *cases(40), *(replace(case, rows=20) for case in LARGE)], ids=str
)
def test_as_good_as_torch(case: LinearCase, dtype: torch.dtype) -> None:
    arguments = case.draw(dtype, "cuda")
    torch.use_deterministic_algorithms(True)  # poisons what is left unwritten
    try:
        out = skinny_linear(**arguments)
    finally:
        torch.use_deterministic_algorithms(False)
    true = exact(arguments)
    plain = skinny_linear_reference(**arguments, accumulate=dtype)
    small = (2e-6 if dtype == torch.float32 else 2e-3) * true.abs().max()
    assert out.isfinite().all()
    assert (out - true).abs().max() <= 2 * (plain - true).abs().max() + small


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_row_invariance_of_every_form(case: LinearCase) -> None:
    arguments = case.draw(torch.bfloat16, "cuda") | {"out_dtype": torch.float32}
    whole = skinny_linear(**arguments)
    for count in ROW_COUNTS:
        for first in {0, min(3, 640 - count), 640 - count}:
            rows = slice(first, first + count)
            assert same(skinny_linear(**rows_of(arguments, rows)), whole[rows]), (count, first)


@pytest.mark.parametrize("weight", WEIGHTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_row_count_up_to_640(weight: tuple[int, int], dtype: torch.dtype) -> None:
    arguments = LinearCase(640, weight[1], weight[0]).draw(dtype, "cuda") | {"out_dtype": torch.float32}
    whole = skinny_linear(**arguments)
    for count in range(1, 641, 1 if weight == (2048, 2048) else 37):
        first = (count * 7) % (641 - count)
        rows = slice(first, first + count)
        assert same(skinny_linear(**rows_of(arguments, rows)), whole[rows]), (count, first)


def test_float32_rows() -> None:
    arguments = LinearCase(200, 576, 700, norm="rms").draw(torch.float32, "cuda")
    whole = skinny_linear(**arguments)
    for first, count in ((0, 1), (150, 1), (9, 16), (20, 33), (0, 100)):
        rows = slice(first, first + count)
        assert same(skinny_linear(**rows_of(arguments, rows)), whole[rows])


def test_strides_change_no_bit() -> None:
    arguments = replace(EVERYTHING, rows=33, groups=0).draw(torch.bfloat16, "cuda")
    expected = skinny_linear(**arguments)
    for name in ("x_NC", "weight_OC", "residual"):
        arguments[name] = arguments[name].T.contiguous().T
    assert same(skinny_linear(**arguments), expected)


def confidence_call(vocabulary: int, channels: int, rows: int, **more: Any) -> dict[str, Any]:
    arguments = LinearCase(rows, channels, vocabulary, norm="rms").draw(torch.bfloat16, "cuda")
    names = {"x_NC": "hidden_NC", "weight_OC": "weight_VC"}
    thresholds = torch.linspace(0, 1, rows, device="cuda")
    found = {names.get(name, name): value for name, value in arguments.items() if name != "activation"}
    return found | {"thresholds": thresholds} | more


@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize("sizes", [(49152, 576), (128256, 2048), (50257, 768)], ids=str)
def test_confidence_is_that_of_the_logits(sizes: tuple[int, int], softcap: float | None) -> None:
    arguments = confidence_call(*sizes, 40, softcap=softcap)
    got = exit_confidence(**arguments)
    norm = arguments["norm"]
    logits = skinny_linear(arguments["hidden_NC"], arguments["weight_VC"], norm=norm, out_dtype=torch.float32)
    if softcap is None:
        assert torch.equal(got.token_N, logits.argmax(dim=1))
    exact = exit_confidence_reference(**arguments, accumulate=torch.float64)
    for name in ("probability_N", "gap_N", "entropy_N", "lse_N"):
        torch.testing.assert_close(getattr(got, name).double(), getattr(exact, name), rtol=1e-3, atol=1e-3)
    assert torch.equal(got.exits_N, got.gap_N >= arguments["thresholds"])


@pytest.mark.parametrize("sizes", [(49152, 576), (50257, 768), (32000, 2048)], ids=str)
def test_confidence_is_row_invariant(sizes: tuple[int, int]) -> None:
    arguments = confidence_call(*sizes, 640, softcap=30.0)
    whole = exit_confidence(**arguments)
    for count in ROW_COUNTS:
        for first in {0, min(3, 640 - count), 640 - count}:
            rows = slice(first, first + count)
            got = exit_confidence(**rows_of(arguments, rows))
            for ours, theirs in zip(got, whole, strict=True):
                assert same(ours, theirs[rows]), (count, first)


def test_graphs_and_compilation() -> None:
    arguments = LinearCase(8, 2048, 2048, norm="rms").draw(torch.bfloat16, "cuda")
    x, weight = arguments["x_NC"], arguments["weight_OC"]

    def step(x: Tensor) -> tuple[Tensor, ExitConfidence]:
        """A chain, each launch of which may start before the one ahead has ended."""
        for _ in range(10):
            x = skinny_linear(x, weight, norm=arguments["norm"], residual=x)
        return x, exit_confidence(x, weight, thresholds=0.5)

    expected, confidence = step(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, captured = step(x)
    for _ in range(20):
        out.zero_()
        graph.replay()
        assert same(out, expected)
        assert all(same(a, b) for a, b in zip(captured, confidence, strict=True))
    compiled = torch.compile(lambda x: skinny_linear(x, weight) * 2, fullgraph=True)
    assert same(compiled(x), skinny_linear(x, weight) * 2)


def test_offsets_beyond_32_bits() -> None:
    """A weight of more than 2**31 elements: its last rows."""
    weight = torch.zeros(300_000, 8192, dtype=torch.bfloat16, device="cuda")
    weight[-200:] = torch.randn(200, 8192, device="cuda").bfloat16()
    x = torch.randn(3, 8192, device="cuda").bfloat16()
    out = skinny_linear(x, weight, out_dtype=torch.float32)
    assert not out[:, :-200].any()
    torch.testing.assert_close(out[:, -200:], x.float() @ weight[-200:].float().T, rtol=1e-3, atol=1e-2)
    got = exit_confidence(x, weight)
    assert torch.equal(got.token_N, out.argmax(dim=1))
