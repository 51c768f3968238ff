"""Every feature of attention alone and in pairs, in the interpreter, against float64 autograd."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_eff.kernels.attention import attention, attention_reference
from lit_eff.kernels.attention.documents import document_ranges
from lit_eff.kernels.attention.dropout import kept_weights

pytestmark = pytest.mark.usefixtures("interpreter")

B, T, S, H, K, D = 2, 66, 97, 2, 1, 24
FEATURES = ("causal", "window", "softcap", "sinks", "alibi", "dropout", "documents", "starts")


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    """torch.empty yields NaN in deterministic mode: an element that a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def options_of(features: tuple[str, ...], queries: int = T, keys: int = S, heads: int = H) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)

    def ids(rows: int) -> Tensor:
        return torch.randint(0, 3, (B, rows), generator=generator).sort(1).values

    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "causal": lambda: {"causal": True},
        "window": lambda: {"window": 37},
        "softcap": lambda: {"softcap": 2.0},
        "sinks": lambda: {"sinks": torch.randn(heads, generator=generator)},
        "alibi": lambda: {"alibi": 0.2 * torch.rand(heads, generator=generator)},
        "dropout": lambda: {"dropout_p": 0.3, "seed": -77},
        "documents": lambda: {"documents_BT": ids(queries), "key_documents_BS": ids(keys)},
        "starts": lambda: {"starts_B": torch.tensor([5, 31])},
    }
    return {name: value for feature in features for name, value in makers[feature]().items()}


def outputs_and_gradients(
    function: Callable[..., Any], tensors: list[Tensor], options: dict[str, Any]
) -> dict[str, Tensor]:
    leaves = {name: t.clone().requires_grad_() for name, t in zip("qkv", tensors, strict=True)}
    if "sinks" in options:
        leaves["sinks"] = options["sinks"].detach().to(tensors[0].dtype, copy=True).requires_grad_()
        options = options | {"sinks": leaves["sinks"]}
    out, lse = function(*(leaves[name] for name in "qkv"), return_lse=True, **options)
    generator = torch.Generator().manual_seed(4)
    douts = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in (out, lse)]
    seen = lse.isfinite()
    ((out * douts[0]).sum() + (lse[seen] * douts[1][seen]).sum()).backward()
    gradients = {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    assert len(gradients) == len(leaves)
    return {"out": out.detach(), "lse": lse.detach()} | gradients


def assert_as_in_float64(tensors: list[Tensor], options: dict[str, Any]) -> None:
    got = outputs_and_gradients(attention, tensors, options)
    doubles = [t.double() for t in tensors]
    exact = outputs_and_gradients(attention_reference, doubles, options | {"accumulate": torch.float64})
    assert got.keys() == exact.keys()
    for name, expected in exact.items():
        torch.testing.assert_close(
            got[name].double(), expected, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def random_tensors(queries: int = T, keys: int = S, head_dim: int = D) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = [(B, queries, H, head_dim)] + 2 * [(B, keys, K, head_dim)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("features", [*((each,) for each in FEATURES), FEATURES], ids="+".join)
def test_alone_and_all_together(features: tuple[str, ...]) -> None:
    assert_as_in_float64(random_tensors(), options_of(features))


@pytest.mark.slow
@pytest.mark.parametrize("features", list(itertools.combinations(FEATURES, 2)), ids="+".join)
def test_in_pairs(features: tuple[str, ...]) -> None:
    assert_as_in_float64(random_tensors(), options_of(features))


@pytest.mark.parametrize("features", [("causal",), ("window", "sinks"), ("documents", "dropout", "alibi")])
@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (0, 0), (1, 1), (1, 130), (130, 1)], ids=str)
def test_lengths_of_none_and_one(sizes: tuple[int, int], features: tuple[str, ...]) -> None:
    assert_as_in_float64(random_tensors(*sizes), options_of(features, *sizes))


@pytest.mark.parametrize("head_dim", [16, 80, 129, 256])
def test_head_dims(head_dim: int) -> None:
    assert_as_in_float64(random_tensors(40, 50, head_dim), options_of(("causal", "window"), 40, 50))


def test_no_rows_and_no_heads() -> None:
    for batch, heads, kv_heads in ((0, 4, 2), (2, 0, 2), (2, 0, 0)):
        q = torch.randn(batch, 5, heads, 16, requires_grad=True)
        k = torch.randn(batch, 7, kv_heads, 16, requires_grad=True)
        out, lse = attention(q, k, k, causal=True, return_lse=True)
        out.sum().backward()
        assert out.shape == q.shape
        assert lse.shape == (batch, heads, 5)
        assert k.grad is not None
        assert k.grad.eq(0).all()


@pytest.mark.parametrize("order", ["random", "padding last", "falling", "returning"])
def test_documents_in_any_order(order: str) -> None:
    """Skipping blocks is for ordered ids; correctness is for all."""
    generator = torch.Generator().manual_seed(6)
    ids = torch.arange(150)[None].expand(B, -1) // 40
    if order == "random":
        ids = torch.randint(-2, 3, (B, 150), generator=generator)
    elif order == "padding last":
        ids = torch.where(torch.arange(150) < 110, ids, -1)
    elif order == "falling":
        ids = -ids
    else:
        ids = ids % 2
    assert_as_in_float64(random_tensors(150, 150, 16), {"causal": True, "documents_BT": ids})


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_document_ranges_row_by_row(dtype: torch.dtype) -> None:
    """First and last row between a tile's least and greatest id, and whether one document fills the range."""
    generator = torch.Generator().manual_seed(7)
    own = torch.randint(0, 4, (B, 50), generator=generator).sort(1).values.to(dtype)
    other = (
        torch.randint(0, 5, (2200, B), generator=generator).sort(0).values.to(dtype).t()
    )  # three loads long
    other[1, 70] = 0  # out of order
    launch, ranges = document_ranges(own, other, 16)
    launch.run()
    for b, i in itertools.product(range(B), range(4)):
        ids = own[b, 16 * i : 16 * (i + 1)].tolist()
        seen = [n for n, each in enumerate(other[b].tolist()) if min(ids) <= each <= max(ids)]
        first, stop = (seen[0], seen[-1] + 1) if seen else (0, 0)
        whole = min(ids) == max(ids) and len(seen) == stop - first
        assert ranges[b, i].tolist() == [first, stop, int(whole)]


def test_dropped_weights_are_the_definitions() -> None:
    """With values that are the identity, the output shows every weight: zero just where dropout says."""
    q = k = torch.zeros(2, 64, 2, 64)
    v = torch.eye(64)[None, :, None].expand(2, -1, 2, -1)
    seed = torch.tensor([2**40 + 5])
    out = attention(q, k, v, dropout_p=0.25, seed=seed)
    kept = kept_weights(0.25, seed, (2, 2, 64, 64)).transpose(1, 2)
    assert out.ne(0).equal(kept)
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / 64 / 0.75))


def test_dropout_draws_from_torchs_generator() -> None:
    tensors = random_tensors()
    torch.manual_seed(0)
    first, second = (attention(*tensors, dropout_p=0.5) for _ in range(2))
    torch.manual_seed(0)
    again = attention(*tensors, dropout_p=0.5)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_same_bits_every_time() -> None:
    options = options_of(("causal", "sinks", "dropout", "documents"))
    first, second = (outputs_and_gradients(attention, random_tensors(), options) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
