"""Propagation in the interpreter: values, bits of the layers' own kernels, what is left alone and refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_eff.errors import UserError
from lit_eff.kernels.linear import Norm
from lit_eff.kernels.propagate import propagate, propagate_reference
from lit_eff.kernels.rope import call as rope_call
from lit_eff.kernels.rope import rotary_tables
from lit_eff.models.cache import KVCache
from lit_eff.models.config import ModelConfig
from lit_eff.models.layers import inverse_frequencies
from lit_eff.models.transformer import LayerContext, Transformer
from tests.kernels.propagate_cases import CASES, PropagateCase, exact, layer_by_layer, run, with_caches

F16, F32 = torch.float16, torch.float32


@pytest.mark.usefixtures("row_exact_interpreter", "poisoned", "planned")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_are_those_of_the_layers_own_kernels(case: PropagateCase) -> None:
    """Skinny linear with its fused norm, rotation with cache write; and near the truth."""
    arguments = case.draw(F32)
    found = run(arguments), with_caches(layer_by_layer, arguments), exact(arguments)
    for got, expected, true in zip(*found, strict=True):
        assert torch.equal(got.view(torch.int32), expected.view(torch.int32))
        torch.testing.assert_close(got.double(), true, rtol=2e-5, atol=2e-5, equal_nan=True)


@pytest.mark.usefixtures("row_exact_interpreter", "poisoned")
@pytest.mark.parametrize("case", [PropagateCase(), PropagateCase(k_norm=True, bias=True)], ids=str)
def test_float16(case: PropagateCase) -> None:
    """Rounded between product and rotation as between two kernels; as good as torch."""
    arguments = case.draw(F16)
    plain = with_caches(propagate_reference, arguments, accumulate=F16)
    found = run(arguments), with_caches(layer_by_layer, arguments), plain, exact(arguments)
    for got, expected, theirs, true in zip(*found, strict=True):
        assert torch.equal(got, expected)
        assert (got - true).abs().max() <= 2 * (theirs - true).abs().max() + 1e-3


@pytest.mark.usefixtures("row_exact_interpreter")
def test_many_key_heads() -> None:
    """More than a program of the second launch takes."""
    arguments = PropagateCase(kv_heads=3, head_dim=16, rotary=16, k_norm=True, page=4).draw(F32)
    with mock.patch.object(rope_call, "TILE", 8):
        found = run(arguments)
    for got, expected in zip(found, with_caches(layer_by_layer, arguments), strict=True):
        assert torch.equal(got.view(torch.int32), expected.view(torch.int32))


@pytest.mark.usefixtures("row_exact_interpreter")
@pytest.mark.parametrize("features", [{}, {"page": 4}, {"k_norm": True}], ids=str)
def test_tokens_do_not_depend_on_their_neighbours(features: dict[str, Any]) -> None:
    """A batch of two row tiles, and each token alone, with fewer layers: the same bits."""
    arguments = PropagateCase(batch=9, queries=2, **features).draw(F32)
    whole = run(arguments)
    table_BP = arguments.get("page_table_BP")
    for b, t in ((0, 1), (4, 0), (8, 1)):
        for layer in (0, 1):
            part = {
                "hidden_BTC": arguments["hidden_BTC"][b : b + 1, t : t + 1],
                "lengths_B": arguments["lengths_B"][b : b + 1] + t,
                "norm": Norm(arguments["norm"].weight_C[layer : layer + 1], None, 1e-5),
                "tables": arguments["tables"],
                "weight_LOC": arguments["weight_LOC"][layer : layer + 1],
            }
            if features.get("k_norm"):
                part["k_norm_LD"] = arguments["k_norm_LD"][layer : layer + 1]
            rows = slice(None) if table_BP is not None else slice(b, b + 1)
            for name in ("k_cache", "v_cache"):
                part[name] = arguments[name][layer : layer + 1, rows]
            if table_BP is not None:
                part["page_table_BP"] = table_BP[b : b + 1]
            slot = int(part["lengths_B"])
            place = (b, slot) if table_BP is None else (table_BP[b, slot // 4], slot % 4)
            own = (0, slot) if table_BP is None else place
            for got, expected in zip(run(part), whole, strict=True):
                assert torch.equal(got[0][own], expected[layer][place])


@pytest.mark.usefixtures("interpreter")
def test_it_is_what_the_model_computes() -> None:
    """A layer that runs on the hidden state writes these keys and values."""
    config = ModelConfig(
        vocab_size=32, layers=3, model_dim=64, heads=4, kv_heads=2, context=16, qkv_bias=True, qk_norm=True,
        norm="rms", mlp="swiglu",
    )  # fmt: skip
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    hidden_BTC, starts_B = torch.randn(2, 3, 64), torch.tensor([4, 0])
    cache = KVCache(config, 2, 16)
    positions_BT = starts_B[:, None] + torch.arange(3)
    with torch.no_grad():
        for layer in (1, 2):
            context = LayerContext(positions_BT, cache=cache, starts_B=starts_B)
            model.run_layers(hidden_BTC, layer, layer + 1, context)
    blocks: list[Any] = list(model.blocks[1:])
    k_cache, v_cache = torch.zeros_like(cache.k[1:]), torch.zeros_like(cache.v[1:])
    queries = config.heads * config.head_size
    propagate(
        hidden_BTC,
        torch.stack([block.attention.qkv.weight[queries:].detach() for block in blocks]),
        k_cache,
        v_cache,
        starts_B,
        norm=Norm(
            torch.stack([block.attention_norm.weight.detach() for block in blocks]), eps=config.norm_eps
        ),
        bias_LO=torch.stack([block.attention.qkv.bias[queries:].detach() for block in blocks]),
        tables=rotary_tables(inverse_frequencies(config, hidden_BTC.device), 16),
        k_norm_LD=torch.stack([block.attention.k_norm.weight.detach() for block in blocks]),
        k_norm_eps=config.norm_eps,
    )
    torch.testing.assert_close(k_cache, cache.k[1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(v_cache, cache.v[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("interpreter")
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layers=st.integers(1, 3),
    batch=st.integers(1, 4),
    queries=st.integers(1, 5),
    channels=st.integers(1, 90),
    kv_heads=st.integers(1, 3),
    half=st.integers(8, 20),
    part=st.floats(0, 1),
    page=st.integers(0, 5),
    norm=st.sampled_from([None, "rms", "rms_plain", "layer"]),
    ragged=st.booleans(),
    k_norm=st.booleans(),
)
def test_any_sizes(
    layers: int,
    batch: int,
    queries: int,
    channels: int,
    kv_heads: int,
    half: int,
    part: float,
    page: int,
    norm: str | None,
    ragged: bool,
    k_norm: bool,
) -> None:
    case = PropagateCase(
        layers, batch, queries, channels, kv_heads, 2 * half, 7, 2 * round(part * half), norm,
        page=page, ragged=ragged, k_norm=k_norm,
    )  # fmt: skip
    arguments = case.draw(F32)
    for got, true in zip(run(arguments), exact(arguments), strict=True):
        torch.testing.assert_close(got.double(), true, rtol=2e-4, atol=2e-4, equal_nan=True)


@pytest.mark.usefixtures("row_exact_interpreter")
def test_strides_change_no_bit() -> None:
    case = PropagateCase(norm="layer", bias=True, k_norm=True)
    arguments = case.draw(F32)
    expected = run(arguments)
    for name in ("hidden_BTC", "weight_LOC", "k_cache", "v_cache", "bias_LO", "k_norm_LD"):
        order = tuple(range(arguments[name].ndim))[::-1]
        arguments[name] = arguments[name].permute(order).contiguous().permute(order)
    gain, shift, *others = arguments["norm"]
    arguments["norm"] = Norm(gain.T.contiguous().T, shift.T.contiguous().T, *others)
    caches = {name: arguments[name] for name in ("k_cache", "v_cache")}
    propagate(**arguments)  # the caches themselves: a clone would have other strides
    for got, wanted in zip(caches.values(), expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.usefixtures("row_exact_interpreter", "poisoned")
@pytest.mark.parametrize("k_norm", [False, True])
def test_what_is_no_token_is_left_out(k_norm: bool) -> None:
    """As on a GPU, where nothing is checked: slots, positions and pages out of range, at both ends."""
    arguments = PropagateCase(batch=5, page=4, positions=True, k_norm=k_norm).draw(F32)
    arguments["lengths_B"] = torch.tensor([11, -1, 5, 0, 3])
    arguments["query_lengths_B"] = torch.tensor([2, 2, -1, 9, 2])
    arguments["positions_BT"] = torch.tensor([[0, 1], [0, 1], [0, 1], [-1, 9], [7, 8]])
    arguments["page_table_BP"][0, 2] = 99
    arguments["page_table_BP"][4, 0] = -1
    with mock.patch("lit_eff.kernels.propagate.interface.check_places"):
        found = run(arguments)
    expected = with_caches(propagate_reference, arguments)
    for got, wanted, name in zip(found, expected, ("k_cache", "v_cache"), strict=True):
        same = (got == arguments[name]) | (got.isnan() & arguments[name].isnan())
        changed = {tuple(place[1:3]) for place in (~same).nonzero().tolist()}
        assert changed == {(int(arguments["page_table_BP"][4, 1]), 0)}
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.usefixtures("interpreter")
def test_operator_check_and_tracing() -> None:
    from lit_eff.kernels.linear.operator import flat_norm
    from lit_eff.kernels.propagate.operator import propagate as operator

    arguments = PropagateCase(layers=1, batch=1, queries=1, head_dim=16, rotary=16, k_norm=True).draw(F32)
    names = ("page_table_BP", "query_lengths_B", "positions_BT", "k_norm_LD")
    caches = {name: arguments[name] for name in ("k_cache", "v_cache")}
    flat = (
        arguments["hidden_BTC"][0], arguments["weight_LOC"], *caches.values(), arguments["lengths_B"],
        *flat_norm(arguments["norm"]), None, *arguments["tables"], *map(arguments.get, names), 1e-6,
    )  # fmt: skip
    torch.library.opcheck(operator, flat)
    expected = run(arguments)
    traced_caches = {name: each.clone() for name, each in caches.items()}

    def step(hidden_BTC: torch.Tensor) -> torch.Tensor:
        propagate(**(arguments | traced_caches | {"hidden_BTC": hidden_BTC * 1.0}))
        return traced_caches["k_cache"] * 2

    traced = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(traced(arguments["hidden_BTC"]), expected[0] * 2)
    assert torch.equal(traced_caches["v_cache"], expected[1])


@pytest.mark.usefixtures("interpreter")
def test_no_tokens() -> None:
    arguments = PropagateCase(queries=0).draw(F32)
    assert torch.equal(run(arguments)[0], arguments["k_cache"])


def test_cpu_runs_the_reference_without_the_interpreter() -> None:
    arguments = PropagateCase(page=4, ragged=True, k_norm=True).draw(F32)
    with mock.patch("lit_eff.kernels.linear.operator.INTERPRETED", False):
        found = run(arguments)
    for got, expected in zip(found, with_caches(propagate_reference, arguments), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("interpreter")
def test_bfloat16_is_refused_in_the_interpreter() -> None:
    with pytest.raises(UserError, match="interpreter computes bfloat16 products wrongly"):
        propagate(**PropagateCase().draw(torch.bfloat16))


GOOD = replace(PropagateCase(), batch=2, queries=3).draw(F32)
X, W, CACHE = GOOD["hidden_BTC"], GOOD["weight_LOC"], GOOD["k_cache"]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"hidden_BTC": X[0]}, "wants hidden states"),
    ({"weight_LOC": W[0]}, "wants hidden states"),
    ({"weight_LOC": W[:0]}, "of no layer"),
    ({"weight_LOC": W[..., :7]}, "wants rows"),
    ({"weight_LOC": W.half()}, "weight is torch.float16"),
    ({"hidden_BTC": X.double(), "weight_LOC": W.double()}, "float64 is not"),
    ({"k_cache": CACHE[0]}, r"k_cache .* does not fit"),
    ({"v_cache": CACHE[:1]}, r"v_cache .* does not fit"),
    ({"k_cache": CACHE[..., :16]}, "with 2 K D = 128"),
    ({"k_cache": CACHE.half()}, "k_cache is torch.float16"),
    ({"v_cache": CACHE.to("meta")}, "v_cache is on meta"),
    ({"k_cache": CACHE[:, :1]}, r"wants a cache \(2, S, 2, 32\)"),
    ({"v_cache": CACHE[:, :, :3]}, "of one shape"),
    ({"k_cache": CACHE.view(2, 2, 9, 8, 8), "v_cache": CACHE.view(2, 2, 9, 8, 8)}, "head dim 8 is outside"),
    ({"norm": Norm(torch.ones(72))}, r"norm.weight_C must be floating point \(2, 72\)"),
    ({"norm": Norm(None, torch.ones(72, 2))}, r"norm.bias_C must be floating point \(2, 72\)"),
    ({"norm": Norm(eps=-1.0)}, "norm.eps -1.0"),
    ({"bias_LO": torch.ones(2, 127)}, "bias_LO must be"),
    ({"k_norm_LD": torch.ones(1, 32)}, "k_norm_LD must be"),
    ({"k_norm_eps": -1.0}, "k_norm_eps -1.0"),
    ({"tables": rotary_tables(torch.ones(17), 9)}, "tables turn 34 channels"),
    ({"lengths_B": torch.tensor([0, 7])}, "row 1 has 7 tokens and 3 query tokens, more than the 9"),
    ({"lengths_B": torch.zeros(2)}, "lengths_B must hold"),
    ({"page_table_BP": torch.full((2, 1), 2)}, r"page_table_BP\[0, 0\] is 2, not one of the 2 pages"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message for _, message in BAD])
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        propagate(**(GOOD | {"lengths_B": torch.tensor([0, 6])} | changes))
