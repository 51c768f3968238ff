"""Row invariance, bit for bit: a token yields one result, whatever is computed beside it and however."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_eff.kernels.attention.with_cache import attention_with_cache
from lit_eff.kernels.attention.with_cache.tiles import Deal, Unit
from tests.kernels.cache_cases import CacheCase, paged, small_tiles

pytestmark = pytest.mark.usefixtures("row_exact_interpreter")

FORMS: list[dict[str, Any]] = [
    {},
    {"window": 30},
    {"softcap": 2.0, "sinks": True, "alibi": True},
]
# Of 90 slots in chunks of 32 and segments of 64.
DEALS = [
    Deal(Unit.CHUNK, 3, 3),
    Deal(Unit.CHUNK, 3, 2),
    Deal(Unit.SEGMENT, 2, 1),
    Deal(Unit.ROW, 2, 1),
]


def same(got: Tensor, expected: Tensor) -> bool:
    """The same bits, the sign of zero included."""
    return torch.equal(got.view(torch.int32), expected.view(torch.int32))


@pytest.fixture(params=FORMS, ids=str)
def call(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CacheCase(queries=6, heads=4, features=request.param).draw(torch.float32)


@pytest.fixture
def expected(call: dict[str, Any]) -> Tensor:
    return run(call)


def run(arguments: dict[str, Any], deal: Deal | None = None, **changes: Any) -> Tensor:
    with small_tiles(deal):
        out = attention_with_cache(**(arguments | changes))
    assert isinstance(out, Tensor)
    assert out.isfinite().all()
    return out


def row(arguments: dict[str, Any], b: int) -> dict[str, Any]:
    """One batch row alone."""
    alone = {name: arguments[name][b : b + 1] for name in ("q_BTHD", "k_cache", "v_cache", "lengths_B")}
    return arguments | alone


def test_batch_and_neighbours(call: dict[str, Any], expected: Tensor) -> None:
    for b in range(2):
        assert same(run(row(call, b)), expected[b : b + 1])
    reversed_rows = {name: call[name].flip(0) for name in ("q_BTHD", "k_cache", "v_cache", "lengths_B")}
    assert same(run(call | reversed_rows).flip(0), expected)


def test_query_count_and_place(call: dict[str, Any], expected: Tensor) -> None:
    """Decoding at a slot, and verifying from any slot before it, give the row of the whole call."""
    q, lengths = call["q_BTHD"], call["lengths_B"]
    for first, count in ((0, 1), (3, 1), (5, 1), (1, 2), (2, 4)):
        piece = q[:, first : first + count]
        assert same(run(call, q_BTHD=piece, lengths_B=lengths + first), expected[:, first : first + count])


def test_other_queries(call: dict[str, Any], expected: Tensor) -> None:
    q = call["q_BTHD"].clone()
    q[:, ::2] = 1e3 * torch.randn_like(q[:, ::2])
    assert same(run(call, q_BTHD=q)[:, 1::2], expected[:, 1::2])
    missing = run(call, query_lengths_B=torch.tensor([4, 2]))
    assert same(missing[0, :4], expected[0, :4])
    assert same(missing[1, :2], expected[1, :2])


def test_capacity_and_bound(call: dict[str, Any], expected: Tensor) -> None:
    wider = {
        name: torch.nn.functional.pad(call[name], (0, 0, 0, 0, 0, 200), value=torch.nan)
        for name in ("k_cache", "v_cache")
    }
    assert same(run(call | wider), expected)
    assert same(run(call | wider, max_length=90), expected)


@pytest.mark.parametrize("page_size", [1, 5, 8, 48])
def test_paging(call: dict[str, Any], expected: Tensor, page_size: int) -> None:
    assert same(run(paged(call, page_size)), expected)


@pytest.mark.parametrize("deal", DEALS, ids=str)
def test_deal_of_the_work(call: dict[str, Any], expected: Tensor, deal: Deal) -> None:
    assert same(run(call, deal), expected)


def test_tree_that_is_a_chain(call: dict[str, Any], expected: Tensor) -> None:
    chain = torch.ones(2, 6, 6, dtype=torch.bool).tril()
    assert same(run(call, tree_mask_BTT=chain), expected)


def test_branch_of_a_tree_is_its_chain() -> None:
    """Two branches share a prefix of 16 slots, one step: what a query sees is then one set in one order."""
    arguments = CacheCase(batch=1, queries=32, capacity=96).draw(torch.float32)
    tree = torch.zeros(1, 32, 32, dtype=torch.bool)
    tree[0, :16, :16] = torch.ones(16, 16).tril().bool()
    tree[0, 16:, 16:] = torch.ones(16, 16).tril().bool()
    out = run(arguments, tree_mask_BTT=tree)
    first = arguments["q_BTHD"][:, :16]
    assert same(run(arguments, q_BTHD=first), out[:, :16])


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("pieces", [[40], [1, 1, 1, 37], [19, 21], [16, 16, 8]], ids=str)
def test_prefill_in_pieces(form: dict[str, Any], pieces: list[int]) -> None:
    arguments = CacheCase(batch=1, queries=40, capacity=70, features=form).draw(torch.float32)
    start = int(arguments["lengths_B"])
    whole = run(arguments, Deal(Unit.ROW, 2, 1))
    done = 0
    for count in pieces:
        q = arguments["q_BTHD"][:, done : done + count]
        out = run(arguments, q_BTHD=q, lengths_B=torch.tensor([start + done]))
        assert same(out, whole[:, done : done + count])
        done += count
