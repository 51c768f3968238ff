"""Attention on a cache in the interpreter, at small constants, against float64 and what it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.kernels.attention import attention_reference
from lit_eff.kernels.attention.with_cache import attention_with_cache, attention_with_cache_reference
from lit_eff.kernels.attention.with_cache.reference import visible_slots
from tests.kernels.cache_cases import CacheCase, paged, small_tiles

FEATURES: dict[str, Any] = {
    "paged": 8,
    "ragged": True,
    "tree": True,
    "window": 30,
    "softcap": 2.0,
    "sinks": True,
    "alibi": True,
    "scale": 0.5,
}
SINGLE = [CacheCase(features={name: value}) for name, value in FEATURES.items()]
PAIRS = [CacheCase(features={a: FEATURES[a], b: FEATURES[b]}) for a, b in itertools.combinations(FEATURES, 2)]
SIZES = [
    CacheCase(heads=4, kv_heads=2),
    CacheCase(queries=1, heads=4, kv_heads=2, features={"paged": 8}),
    CacheCase(batch=1, queries=1, heads=1, kv_heads=1, capacity=1),
    CacheCase(queries=30, capacity=40),  # several row tiles
    CacheCase(heads=7, kv_heads=1, queries=5, head_dim=24),  # a group that is no power of two
    CacheCase(heads=4, kv_heads=4, head_dim=40, features={"paged": 16}),  # pages as long as a step
    CacheCase(features={"paged": 5}),
    CacheCase(head_dim=16, queries=4, features={"window": 1}),
    CacheCase(queries=20, heads=4, kv_heads=2, features=FEATURES),
]


def both(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    out, lse = attention_with_cache(**arguments, return_lse=True)
    return out, lse


@pytest.mark.usefixtures("interpreter", "poisoned")
@pytest.mark.parametrize("case", SINGLE + PAIRS + SIZES, ids=str)
def test_float32_matches_float64(case: CacheCase) -> None:
    arguments = case.draw(torch.float32)
    with small_tiles():
        out, lse = both(arguments)
    doubles = {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in arguments.items()
    }
    expected, expected_lse = attention_with_cache_reference(
        **doubles, return_lse=True, accumulate=torch.float64
    )
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=3e-6)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=3e-6)


@pytest.mark.usefixtures("interpreter", "poisoned")
def test_float16_is_as_good_as_torch() -> None:
    arguments = CacheCase(features={"paged": 8, "sinks": True}).draw(torch.float16)
    with small_tiles():
        out, _ = both(arguments)
    plain = attention_with_cache_reference(**arguments, accumulate=torch.float16)
    exact = attention_with_cache_reference(**arguments, accumulate=torch.float64)
    assert (out - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-4


@pytest.mark.usefixtures("interpreter")
def test_default_constants() -> None:
    case = CacheCase(batch=1, queries=2, capacity=530)
    arguments = case.draw(torch.float32)
    torch.testing.assert_close(
        attention_with_cache(**arguments), attention_with_cache_reference(**arguments), rtol=1e-5, atol=3e-6
    )


def test_reference_is_the_plain_one_with_starts() -> None:
    arguments = CacheCase(features={"window": 9, "softcap": 3.0, "alibi": True, "sinks": True}).draw(
        torch.float64
    )
    got, got_lse = attention_with_cache_reference(**arguments, return_lse=True, accumulate=torch.float64)
    k, v = (arguments.pop(name).nan_to_num() for name in ("k_cache", "v_cache"))
    q, starts = arguments.pop("q_BTHD"), arguments.pop("lengths_B")
    expected, expected_lse = attention_reference(
        q, k, v, starts_B=starts, return_lse=True, accumulate=torch.float64, **arguments
    )
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got_lse, expected_lse)


def test_visible_slots_by_hand() -> None:
    tree = torch.tensor([[[1, 0, 1], [0, 1, 0], [1, 0, 1]]], dtype=torch.bool)
    mask = visible_slots(3, 6, torch.tensor([2]), tree_mask_BTT=tree, window=4)
    expected = [[1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0], [0, 1, 1, 0, 1, 0]]
    assert mask[0].int().tolist() == expected
    ragged = visible_slots(3, 6, torch.tensor([2]), query_lengths_B=torch.tensor([1]))
    assert ragged[0].sum(1).tolist() == [3, 0, 0]


@pytest.mark.usefixtures("interpreter")
def test_nothing_to_do() -> None:
    k = torch.randn(0, 8, 1, 16)
    assert (
        attention_with_cache(torch.randn(0, 2, 2, 16), k, k, torch.zeros(0, dtype=torch.int64)).numel() == 0
    )
    k = torch.randn(2, 0, 1, 16)
    out, lse = attention_with_cache(
        torch.randn(2, 0, 2, 16), k, k, torch.zeros(2, dtype=torch.int32), return_lse=True
    )
    assert out.shape == (2, 0, 2, 16)
    assert lse.shape == (2, 2, 0)


@pytest.mark.usefixtures("interpreter")
def test_strides_of_any_kind() -> None:
    arguments = CacheCase(features={"tree": True}).draw(torch.float32)
    expected = attention_with_cache(**arguments)
    fused = torch.stack([arguments["k_cache"], arguments["v_cache"]], dim=3)
    arguments["k_cache"], arguments["v_cache"] = fused[:, :, :, 0], fused[:, :, :, 1]
    arguments["q_BTHD"] = arguments["q_BTHD"].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    arguments["lengths_B"] = torch.stack([arguments["lengths_B"]] * 2, dim=1)[:, 0]
    arguments["tree_mask_BTT"] = arguments["tree_mask_BTT"].mT.contiguous().mT
    assert torch.equal(attention_with_cache(**arguments), expected)


@pytest.mark.usefixtures("interpreter")
def test_operator_check_and_tracing() -> None:
    from lit_eff.kernels.attention.with_cache.operator import attention_with_cache as operator

    arguments = CacheCase(batch=1, capacity=20, features={"tree": True, "sinks": True}).draw(torch.float32)
    q, k, v, lengths = (arguments[name] for name in ("q_BTHD", "k_cache", "v_cache", "lengths_B"))
    tree, sinks = arguments["tree_mask_BTT"], arguments["sinks"]
    torch.library.opcheck(operator, (q, k, v, lengths, None, None, tree, sinks, None, 0.25, None, 2.0, None))
    traced = torch.compile(
        lambda q, k, v, n: attention_with_cache(q, k, v, n, softcap=2.0),
        fullgraph=True,
        backend="aot_eager",
        dynamic=True,
    )
    torch.testing.assert_close(traced(q, k, v, lengths), attention_with_cache(q, k, v, lengths, softcap=2.0))


K2 = torch.randn(2, 90, 2, 16)
BAD = [
    ({"q_BTHD": torch.randn(2, 3, 16)}, r"wants q \(B, T, H, D\)"),
    ({"v_cache": torch.randn(2, 9, 1, 16)}, "one shape"),
    ({"q_BTHD": torch.randn(1, 3, 2, 16)}, "differ in batch"),
    ({"q_BTHD": torch.randn(2, 3, 2, 8)}, "differ in head dim"),
    (
        {"q_BTHD": torch.randn(2, 3, 3, 16), "k_cache": K2, "v_cache": K2},
        "3 query heads are not a multiple of 2",
    ),
    ({"q_BTHD": torch.randn(2, 3, 2, 16).double()}, "not float16"),
    ({"q_BTHD": torch.randn(2, 3, 2, 16).half()}, "k_cache is torch.float32"),
    ({"lengths_B": torch.zeros(3, dtype=torch.int64)}, r"lengths_B must have shape \(2\)"),
    ({"lengths_B": torch.zeros(2)}, "lengths_B must hold int32 or int64"),
    ({"lengths_B": torch.tensor([-1, 0])}, "row 0 has length -1"),
    ({"lengths_B": torch.tensor([0, 88])}, "row 1 has 88 tokens and 3 query tokens.*90 slots"),
    ({"max_length": 50}, "more than the 50 tokens of max_length"),
    ({"max_length": 0}, "max_length 0 must be"),
    ({"query_lengths_B": torch.tensor([1, 4])}, "row 1 has 4 of 3 query"),
    ({"tree_mask_BTT": torch.ones(2, 3, 4, dtype=torch.bool)}, r"shape \(2, 3, 3\)"),
    ({"tree_mask_BTT": torch.ones(2, 3, 3)}, "must hold bool"),
    ({"sinks": torch.zeros(4)}, r"sinks must have shape \(2\)"),
    ({"alibi": torch.zeros(2, dtype=torch.int64)}, "alibi must hold float16"),
    ({"window": 0}, "window 0"),
    ({"softcap": -1.0}, "softcap -1.0"),
    ({"q_BTHD": torch.randn(2, 150, 2, 16)}, "150 query tokens exceed the 90 slots"),
    ({"k_cache": torch.randn(2, 90, 1, 16, device="meta")}, "k_cache is on meta"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_calls_are_named(change: dict[str, Any], message: str) -> None:
    arguments = CacheCase().draw(torch.float32) | change
    with pytest.raises(UserError, match=message):
        attention_with_cache(**arguments)


def test_bad_trees_and_pages_are_named() -> None:
    arguments = CacheCase(queries=65, features={"tree": True}).draw(torch.float32)
    with pytest.raises(UserError, match="tree of 65"):
        attention_with_cache(**arguments)
    arguments = paged(CacheCase().draw(torch.float32), 8)
    arguments["page_table_BP"][0, 3] = 99
    with pytest.raises(UserError, match=r"page_table_BP\[0, 3\] is 99, not one of the 25 pages"):
        attention_with_cache(**arguments)
    arguments["page_table_BP"] = arguments["page_table_BP"].flatten()
    with pytest.raises(UserError, match=r"shape \(2, pages\)"):
        attention_with_cache(**arguments)


@pytest.mark.usefixtures("interpreter")
def test_freed_pages_are_not_read() -> None:
    """A window's owner may free the pages behind it; those ahead need not exist yet."""
    case = CacheCase(features={"window": 20, "paged": 8})
    arguments = case.draw(torch.float32)
    table, expected = arguments["page_table_BP"], attention_with_cache(**arguments)
    for row, length in enumerate(arguments["lengths_B"].tolist()):
        table[row, : max(length - 19, 0) // 8] = -1
        table[row, -(-(length + case.queries) // 8) :] = -1
    assert (table == -1).any()
    assert torch.equal(attention_with_cache(**arguments), expected)
