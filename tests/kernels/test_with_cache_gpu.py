"""Attention on a cache, compiled and at real sizes: precision, invariance bit for bit, graphs, poison."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from lit_eff.kernels.attention.with_cache import attention_with_cache, attention_with_cache_reference
from lit_eff.kernels.attention.with_cache import call as cache_call
from lit_eff.kernels.attention.with_cache.tiles import Deal, Unit
from tests.kernels.cache_cases import CacheCase, paged

pytestmark = pytest.mark.gpu

ALL_FEATURES: dict[str, Any] = {
    "paged": 16,
    "ragged": True,
    "tree": True,
    "window": 700,
    "softcap": 5.0,
    "sinks": True,
    "alibi": True,
}
CASES = [
    CacheCase(3, 8, 32, 8, 128, 5000),
    CacheCase(3, 1, 32, 8, 128, 5000),
    CacheCase(2, 64, 8, 1, 64, 3000, {"tree": True}),
    CacheCase(2, 300, 8, 2, 128, 2500),
    CacheCase(3, 5, 14, 2, 96, 4100, ALL_FEATURES),
    CacheCase(2, 4, 4, 2, 256, 4096, {"paged": 64}),
    *(CacheCase(2, 8, 16, 4, 128, 3000, {name: value}) for name, value in ALL_FEATURES.items()),
]
FORMS: list[dict[str, Any]] = [
    {},
    {"window": 3000},
    {"softcap": 5.0},
    {"sinks": True, "alibi": True},
]
# Of 9,900 slots in chunks of 256 or, on Hopper, 512, and segments of 4,096.
DEALS = [
    Deal(Unit.CHUNK, 39, 39),
    Deal(Unit.CHUNK, 39, 4),
    Deal(Unit.SEGMENT, 5, 5),
    Deal(Unit.SEGMENT, 5, 2),
    Deal(Unit.ROW, 5, 1),
]


def run(arguments: dict[str, Any], **changes: Any) -> Tensor:
    out = attention_with_cache(**(arguments | changes))
    assert isinstance(out, Tensor)
    return out


def same(got: Tensor, expected: Tensor) -> bool:
    return torch.equal(got.contiguous().view(torch.int16), expected.contiguous().view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_is_at_most_twice_torchs(case: CacheCase, dtype: torch.dtype) -> None:
    """Against float64 of the same inputs; the yardstick is PyTorch's arithmetic in the input dtype."""
    arguments = case.draw(dtype, "cuda")
    out, lse = attention_with_cache(**arguments, return_lse=True, check_lengths=True)
    plain = attention_with_cache_reference(**arguments, accumulate=dtype)
    doubles = {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in arguments.items()
    }
    exact, exact_lse = attention_with_cache_reference(**doubles, return_lse=True, accumulate=torch.float64)
    small = 1e-5 if dtype == torch.float32 else 1e-3
    assert out.isfinite().all()
    assert (out - exact).abs().max() <= 2 * (plain - exact).abs().max() + small
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_row_invariance(form: dict[str, Any]) -> None:
    """Unused slots hold NaN throughout (see CacheCase)."""
    case = CacheCase(3, 8, 32, 8, 128, 9900, form)
    arguments = case.draw(torch.bfloat16, "cuda")
    q, k, v, lengths = (arguments[name] for name in ("q_BTHD", "k_cache", "v_cache", "lengths_B"))
    expected = run(arguments)
    for b in range(3):
        alone = {"q_BTHD": q[b : b + 1], "k_cache": k[b : b + 1], "v_cache": v[b : b + 1]}
        assert same(run(arguments, lengths_B=lengths[b : b + 1], **alone), expected[b : b + 1])
    for first, count in ((0, 1), (3, 1), (7, 1), (2, 5)):
        piece = q[:, first : first + count]
        got = run(arguments, q_BTHD=piece, lengths_B=lengths + first)
        assert same(got, expected[:, first : first + count])
    wider = {
        name: torch.nn.functional.pad(arguments[name], (0, 0, 0, 0, 0, 7000), value=torch.nan)
        for name in ("k_cache", "v_cache")
    }
    assert same(run(arguments | wider), expected)
    for page_size in (1, 16, 40, 64, 256):
        assert same(run(paged(arguments, page_size)), expected)
    chain = torch.ones(3, 8, 8, dtype=torch.bool, device="cuda").tril()
    assert same(run(arguments, tree_mask_BTT=chain), expected)
    for deal in DEALS:
        with mock.patch.object(cache_call, "deal", return_value=deal):
            assert same(run(arguments), expected)
    assert same(run(arguments), expected)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_prefill_in_pieces(form: dict[str, Any]) -> None:
    """Also the shape of the pieces decides how the work is dealt: whole rows, segments or chunks."""
    arguments = CacheCase(1, 2500, 8, 2, 128, 3000, form).draw(torch.bfloat16, "cuda")
    start = int(arguments["lengths_B"])
    whole = run(arguments)
    for pieces in ([2300, 200], [1, 63, 64, 999, 1373], [1250, 1250]):
        done = 0
        for count in pieces:
            lengths = torch.tensor([start + done], device="cuda")
            out = run(arguments, q_BTHD=arguments["q_BTHD"][:, done : done + count], lengths_B=lengths)
            assert same(out, whole[:, done : done + count])
            done += count


def test_graph_follows_the_lengths() -> None:
    """One captured call serves every length, its poisoned slots read by none."""
    arguments = CacheCase(4, 8, 32, 8, 128, 4096).draw(torch.bfloat16, "cuda")
    lengths = arguments["lengths_B"]
    for name in ("k_cache", "v_cache"):
        arguments[name] = torch.randn_like(arguments[name])
    run(arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(arguments)
    for new in ([0, 1, 255, 256], [4088, 17, 2047, 2048]):
        lengths.copy_(torch.tensor(new))
        graph.replay()
        assert same(out, run(arguments))


def test_compiles_without_graph_breaks() -> None:
    arguments = CacheCase(2, 8, 8, 2, 64, 600).draw(torch.bfloat16, "cuda")
    compiled = torch.compile(lambda q, n: run(arguments, q_BTHD=q, lengths_B=n) * 2, fullgraph=True)
    got = compiled(arguments["q_BTHD"], arguments["lengths_B"])
    assert same(got, run(arguments) * 2)


def test_offsets_beyond_32_bits() -> None:
    """A cache and a pool of more than 2**31 elements, attended at the far end."""
    slots, head_dim = 2**23, 128
    k = torch.zeros(3, slots, 1, head_dim, dtype=torch.bfloat16, device="cuda")
    k[-1, -256:] = torch.randn(256, 1, head_dim, device="cuda").bfloat16()
    q = torch.randn(3, 4, 1, head_dim, device="cuda").bfloat16()
    lengths = torch.tensor([0, 10, slots - 4], device="cuda")
    expected = run({"q_BTHD": q[-1:], "k_cache": k[-1:, -300:], "v_cache": k[-1:, -300:]},
                   lengths_B=torch.tensor([296], device="cuda"), window=200)  # fmt: skip
    arguments = {"q_BTHD": q, "k_cache": k, "v_cache": k, "lengths_B": lengths, "window": 200}
    torch.testing.assert_close(run(arguments)[-1:], expected, rtol=2e-2, atol=2e-2)
    pool = k.view(-1, 16, 1, head_dim)
    table = torch.arange(pool.shape[0], device="cuda", dtype=torch.int32).view(3, -1)
    assert same(run(arguments, k_cache=pool, v_cache=pool, page_table_BP=table), run(arguments))
