"""The Hopper kernel on a cache, on a Hopper GPU: the portable kernel's bits in every form and deal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from lit_eff.kernels.attention.with_cache import attention_with_cache, operator
from lit_eff.kernels.attention.with_cache import call as cache_call
from lit_eff.kernels.attention.with_cache.tiles import Deal, Unit
from tests.kernels.cache_cases import paged

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9,
        reason="needs a Hopper GPU",
    ),
]

LENGTHS = (0, 1, 63, 64, 65, 511, 512, 513, 4095, 4096, 4097, 8000)
CAPACITY = 8200
# Of 8,200 slots in chunks of 512 and segments of 4,096.
DEALS = [
    Deal(Unit.ROW, 3, 1),
    Deal(Unit.SEGMENT, 3, 3),
    Deal(Unit.SEGMENT, 3, 2),
    Deal(Unit.CHUNK, 17, 17),
    Deal(Unit.CHUNK, 17, 5),
]
FORMS: list[dict[str, Any]] = [
    {},
    {"page": 8, "ragged": True},
    {"page": 16},
    {"page": 64, "tree": True},
    {"page": 256},
    {"tree": True, "ragged": True},
    {"window": 700, "page": 16},
    {"window": 1},
    {"softcap": 5.0},
    {"sinks": True, "alibi": True},
    {"page": 32, "ragged": True, "tree": True, "window": 700, "softcap": 5.0, "sinks": True, "alibi": True},
]


def drawn(
    queries: int, head_dim: int = 128, dtype: torch.dtype = torch.bfloat16, heads: int = 8, **form: Any
) -> dict[str, Any]:
    """Arguments with two kv heads, what no query sees poisoned with NaN."""
    generator = torch.Generator("cuda").manual_seed(queries)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.float32)

    batch = len(LENGTHS)
    lengths_B = torch.tensor(LENGTHS, device="cuda")
    count_B = torch.full_like(lengths_B, queries)
    arguments: dict[str, Any] = {
        "q_BTHD": randn(batch, queries, heads, head_dim).to(dtype),
        "k_cache": randn(batch, CAPACITY, 2, head_dim).to(dtype),
        "v_cache": randn(batch, CAPACITY, 2, head_dim).to(dtype),
        "lengths_B": lengths_B,
    }
    if form.get("ragged"):
        count_B = torch.arange(batch, device="cuda") * 3 % (queries + 1)
        arguments["query_lengths_B"] = count_B
    slots = torch.arange(CAPACITY, device="cuda")
    unused_BS = slots >= (lengths_B + count_B)[:, None]
    if window := form.get("window"):
        unused_BS |= slots <= lengths_B[:, None] - window
    for name in ("k_cache", "v_cache"):
        arguments[name][unused_BS] = torch.nan
    if form.get("tree"):
        granted = randn(batch, queries, queries) > 0
        arguments["tree_mask_BTT"] = granted | torch.eye(queries, dtype=torch.bool, device="cuda")
    for name in ("sinks", "alibi"):
        if form.get(name):
            arguments[name] = 0.1 * randn(heads).abs()
    arguments |= {name: form[name] for name in ("window", "softcap") if name in form}
    return paged(arguments, form["page"]) if "page" in form else arguments


@contextmanager
def portable() -> Iterator[None]:
    with mock.patch.object(operator, "obstacle", return_value="the portable kernel is wanted"):
        yield


def run(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    out, lse = attention_with_cache(**arguments, return_lse=True)
    return out, lse


def on_hopper(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    from lit_eff.kernels.attention.with_cache import hopper

    with mock.patch.object(hopper, "split_launch", wraps=hopper.split_launch) as split_launch:
        results = run(arguments)
    split_launch.assert_called_once()
    return results


def check_same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for each, other in zip(got, expected, strict=True):
        assert not each.isnan().any()
        assert torch.equal(each.view(torch.int16), other.view(torch.int16))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_bits_are_the_portable_kernels(form: dict[str, Any]) -> None:
    """In every deal, some of more items than multiprocessors, some of whose rows have no work for a run."""
    arguments = drawn(8, **form)
    with portable():
        expected = run(arguments)
    for _ in range(2):
        check_same(on_hopper(arguments), expected)
    for share in DEALS:
        with mock.patch.object(cache_call, "deal", return_value=share):
            check_same(on_hopper(arguments), expected)


@pytest.mark.parametrize("queries", [1, 3, 16, 64])
@pytest.mark.parametrize(("head_dim", "dtype"), [(128, torch.bfloat16), (64, torch.float16)], ids=str)
def test_bits_at_every_number_of_queries(queries: int, head_dim: int, dtype: torch.dtype) -> None:
    """Up to four row tiles a kv head, and a group that is no power of two."""
    for heads in (8, 14):
        arguments = drawn(queries, head_dim, dtype, heads)
        with portable():
            expected = run(arguments)
        for share in (DEALS[0], DEALS[2], DEALS[4]):
            with mock.patch.object(cache_call, "deal", return_value=share):
                check_same(on_hopper(arguments), expected)


def test_views() -> None:
    """Keys and values of one tensor, heads before slots, queries of a fused projection."""
    arguments = drawn(3)
    expected = on_hopper(arguments)
    both = torch.stack([arguments["k_cache"], arguments["v_cache"]], 2)
    fused = torch.cat([arguments["q_BTHD"], arguments["q_BTHD"]], 2)
    views = {"k_cache": both[:, :, 0], "v_cache": both[:, :, 1], "q_BTHD": fused[:, :, 8:]}
    check_same(on_hopper(arguments | views), expected)
    turned = {
        name: arguments[name].transpose(1, 2).contiguous().transpose(1, 2) for name in ("k_cache", "v_cache")
    }
    check_same(on_hopper(arguments | turned), expected)
