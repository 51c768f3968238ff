"""The plain PyTorch attention against torch's own, by finite differences, and its mask rules spelled out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lit_eff.kernels.attention import attention_reference, visible_keys


def test_agrees_with_torch() -> None:
    q, k, v = (torch.randn(2, 7, 4, 8, dtype=torch.float64) for _ in range(3))
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True)
    got = attention_reference(q, k, v, causal=True, accumulate=torch.float64)
    torch.testing.assert_close(got, expected.transpose(1, 2))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True, "window": 2, "softcap": 1.5},
        {
            "documents_BT": torch.tensor([[0, 0, 1], [2, 2, 2]]),
            "key_documents_BS": torch.tensor([[1, 1, 0, 3]] * 2),
        },
        {"starts_B": torch.tensor([0, 1])},
    ],
)
def test_gradients_by_finite_differences(options: dict[str, object]) -> None:
    q = torch.randn(2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 4, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def outputs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = attention_reference(q, k, v, return_lse=True, accumulate=torch.float64, **options)
        return out, lse.nan_to_num(neginf=0.0)

    assert torch.autograd.gradcheck(outputs, (q, k, v))


def test_masks() -> None:
    assert visible_keys(2, 3) is None
    causal = visible_keys(2, 3, causal=True)
    assert causal is not None
    assert causal.tolist() == [[[True, True, False], [True, True, True]]]
    more_queries = visible_keys(3, 1, causal=True)
    assert more_queries is not None
    assert more_queries[0, :, 0].tolist() == [False, False, True]
    window = visible_keys(4, 4, causal=True, window=2)
    assert window is not None
    assert window[0].sum(1).tolist() == [1, 2, 2, 2]
    starts = visible_keys(2, 5, starts_B=torch.tensor([0, 3]))
    assert starts is not None
    assert starts.sum(2).tolist() == [[1, 2], [4, 5]]
    documents = visible_keys(3, 3, causal=True, documents_BT=torch.tensor([[7, 7, 8]]))
    assert documents is not None
    assert documents[0].tolist() == [[True, False, False], [True, True, False], [False, False, True]]


def test_query_without_keys_yields_zeros_and_no_gradient() -> None:
    q = torch.randn(1, 3, 1, 4, requires_grad=True)
    k = torch.randn(1, 1, 1, 4, requires_grad=True)
    out, lse = attention_reference(q, k, k, causal=True, return_lse=True)
    assert out[0, :2].eq(0).all()
    assert lse[0, 0, :2].eq(-math.inf).all()
    out.sum().backward()
    assert q.grad is not None
    assert k.grad is not None
    assert q.grad[0, :2].eq(0).all()
    assert k.grad.isfinite().all()


def test_low_precision_input_keeps_its_dtype() -> None:
    q = torch.randn(1, 5, 2, 8, dtype=torch.bfloat16)
    out, lse = attention_reference(q, q, q, return_lse=True)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
