"""Packed sequences, in the interpreter: each is attended on its own, whatever lies beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.kernels.attention import attention, attention_varlen, attention_varlen_reference

H, K, D = 2, 1, 16
LENGTHS = [(68, 68), (0, 5), (33, 70), (1, 1), (17, 0), (0, 0), (40, 20)]  # (queries, keys) of each


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def packed(lengths: list[tuple[int, int]], dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """q, k, v and the two cumulative lengths."""
    generator = torch.Generator().manual_seed(1)
    cumulative = [torch.tensor([0, *(each[i] for each in lengths)]).cumsum(0) for i in (0, 1)]
    shapes = [(cumulative[0][-1], H, D)] + 2 * [(cumulative[1][-1], K, D)]
    tensors = (torch.randn(*map(int, shape), generator=generator) for shape in shapes)
    return *(tensor.to(dtype) for tensor in tensors), *cumulative


def results(function: Any, tensors: tuple[Tensor, ...], options: dict[str, Any]) -> dict[str, Tensor]:
    *qkv, cu_q, cu_k = tensors
    leaves = [tensor.clone().requires_grad_() for tensor in qkv]
    sinks = options.get("sinks")
    if sinks is not None:
        leaves.append(sinks.detach().to(qkv[0].dtype, copy=True).requires_grad_())
        options = options | {"sinks": leaves[-1]}
    out, lse = function(*leaves[:3], cu_q, cu_k, return_lse=True, **options)
    generator = torch.Generator().manual_seed(2)
    dout = torch.randn(out.shape, generator=generator).to(out.dtype)
    dlse = torch.randn(lse.shape, generator=generator).to(lse.dtype)
    seen = lse.isfinite()
    ((out * dout).sum() + (lse[seen] * dlse[seen]).sum()).backward()
    names = ("dq", "dk", "dv", "dsinks")
    gradients = {name: leaf.grad for name, leaf in zip(names, leaves, strict=False)}
    return {"out": out.detach(), "lse": lse.detach()} | gradients


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"window": 20},
        {"causal": True, "window": 20, "softcap": 3.0},
        {
            "causal": True,
            "sinks": torch.tensor([0.5, -1.0]),
            "alibi": torch.tensor([1.0, 0.2]),
        },
        {"causal": True, "dropout_p": 0.3, "seed": 9},
        {"max_seqlen_q": 130, "max_seqlen_k": 99},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
def test_as_in_float64(options: dict[str, Any]) -> None:
    tensors = packed(LENGTHS)
    got = results(attention_varlen, tensors, options)
    doubles = (*(tensor.double() for tensor in tensors[:3]), *tensors[3:])
    options = {name: value for name, value in options.items() if not name.startswith("max")}
    exact = results(attention_varlen_reference, doubles, options | {"accumulate": torch.float64})
    for name, expected in exact.items():
        torch.testing.assert_close(
            got[name].double(), expected, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("cumulative", [torch.int32, torch.int64], ids=str)
def test_equal_lengths_are_a_batch_bit_for_bit(cumulative: torch.dtype) -> None:
    q, k, v, *cu = packed([(50, 60)] * 3)
    options: dict[str, Any] = {"causal": True, "dropout_p": 0.2, "seed": 3, "return_lse": True}
    out, lse = attention_varlen(q, k, v, *(c.to(cumulative) for c in cu), **options)
    rows = [tensor.unflatten(0, (3, -1)) for tensor in (q, k, v)]
    out_BTHD, lse_BHT = attention(*rows, **options)
    assert torch.equal(out.unflatten(0, (3, -1)), out_BTHD)
    assert torch.equal(lse.unflatten(1, (3, -1)).transpose(0, 1), lse_BHT)


@pytest.mark.usefixtures("interpreter")
def test_strides() -> None:
    """Slices of a fused projection with NaN all around."""
    fused = torch.full((70, 3, 2, 24), torch.nan)
    fused[:60, :, :, :16] = torch.randn(60, 3, 2, 16)
    q, k, v = fused[:60, :, :, :16].unbind(1)
    cu = torch.tensor([0, 25, 60])
    expected = attention_varlen_reference(q, k, v, cu, cu, causal=True)
    torch.testing.assert_close(attention_varlen(q, k, v, cu, cu, causal=True), expected)


@pytest.mark.usefixtures("interpreter")
def test_no_sequences_at_all() -> None:
    none = torch.zeros(1, dtype=torch.int32)
    q = torch.zeros(0, H, D, requires_grad=True)
    out, lse = attention_varlen(q, q, q, none, none, return_lse=True)
    out.sum().backward()
    assert out.shape == (0, H, D)
    assert lse.shape == (H, 0)


@pytest.mark.usefixtures("interpreter")
def test_compiles_whole_with_a_seed_tensor() -> None:
    q, k, v, *cu = packed([(30, 30), (12, 40)])

    def call(q: Tensor, seed: Tensor) -> Tensor:
        options = {"max_seqlen_q": 30, "max_seqlen_k": 40, "dropout_p": 0.5, "seed": seed}
        out = attention_varlen(q, k, v, *cu, causal=True, **options)
        assert isinstance(out, Tensor)
        return out

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for seed in (1, 2):
        torch.testing.assert_close(compiled(q, torch.tensor([seed])), call(q, torch.tensor([seed])))


@pytest.mark.parametrize(
    ("cu_q", "cu_k", "options", "message"),
    [
        ([0, 5, 3, 10], [0, 4, 8, 12], {}, "cu_seqlens_q decreases from 5 to 3 at index 2"),
        (
            [0, 5, 9],
            [0, 4, 12],
            {},
            "cu_seqlens_q must run from 0 to the 10 tokens there are; it runs from 0 to 9",
        ),
        ([1, 5, 10], [0, 4, 12], {}, "runs from 1 to 10"),
        ([0, 5, 10], [0, 4, 8, 12], {}, "cu_seqlens_k must have shape \\(3,\\)"),
        ([0, 5, 10], [0, 4, 12], {"max_seqlen_k": 7}, "max_seqlen_k 7 is less than the longest, 8"),
        ([0, 5, 10], [0, 4, 12], {"max_seqlen_q": -1}, "max_seqlen_q -1 is negative"),
        ([0.0, 10.0], [0, 12], {}, "cu_seqlens_q must hold integers"),
        ([], [], {}, "holds 0 numbers"),
    ],
)
def test_bad_lengths_are_named(
    cu_q: list[int], cu_k: list[int], options: dict[str, Any], message: str
) -> None:
    q, k = torch.zeros(10, H, D), torch.zeros(12, K, D)
    with pytest.raises(UserError, match=message):
        attention_varlen(q, k, k, torch.tensor(cu_q), torch.tensor(cu_k), **options)


def test_packed_shapes_are_named() -> None:
    q = torch.zeros(1, 10, H, D)
    with pytest.raises(UserError, match="wants q \\(N, H, D\\) and k \\(M, K, D\\)"):
        attention_varlen(q, q, q, torch.tensor([0, 10]), torch.tensor([0, 10]))
