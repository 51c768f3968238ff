"""The plain PyTorch attention against torch's own, by finite differences, and its mask rules spelled out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lit_eff.kernels.attention import attention_reference, visible_keys
from lit_eff.kernels.attention.dropout import kept_weights, philox


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
        {"window": 2, "alibi": torch.tensor([1.0, 0.5, 0.3, 0.1])},
        {"causal": True, "dropout_p": 0.4, "seed": 3},
    ],
)
@pytest.mark.parametrize("has_sinks", [False, True])
def test_gradients_by_finite_differences(options: dict[str, object], has_sinks: bool) -> None:
    q = torch.randn(2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 4, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    sinks = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def outputs(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        more = options | {"sinks": sinks if has_sinks else None}
        out, lse = attention_reference(q, k, v, return_lse=True, accumulate=torch.float64, **more)
        return out, lse.nan_to_num(neginf=0.0)

    assert torch.autograd.gradcheck(outputs, (q, k, v, sinks.requires_grad_(has_sinks)))


def test_each_feature_by_its_formula() -> None:
    """One query, three keys, written out."""
    q = torch.tensor([[[[1.0, 2.0]]]])
    k = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 1.0]]]])
    v = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]], [[5.0, 5.0]]]])
    scores = torch.tensor([1.0, 2.0, 3.0])  # scale 1

    def out(**options: object) -> torch.Tensor:
        got = attention_reference(q, k, v, scale=1.0, **options)
        assert isinstance(got, torch.Tensor)
        return got[0, 0, 0]

    def weighted(logits: torch.Tensor, sink: float = -math.inf) -> torch.Tensor:
        return logits.exp() @ v[0, :, 0] / (logits.exp().sum() + math.exp(sink))

    torch.testing.assert_close(out(), weighted(scores))
    torch.testing.assert_close(out(softcap=2.0), weighted(2 * (scores / 2).tanh()))
    torch.testing.assert_close(out(sinks=torch.tensor([1.5])), weighted(scores, 1.5))
    # The query stands at the last key: distances 2, 1, 0.
    torch.testing.assert_close(
        out(alibi=torch.tensor([0.5])), weighted(scores - 0.5 * torch.tensor([2.0, 1.0, 0.0]))
    )
    lse = attention_reference(q, k, v, scale=1.0, sinks=torch.tensor([1.5]), return_lse=True)[1]
    torch.testing.assert_close(lse[0, 0, 0], (scores.exp().sum() + math.exp(1.5)).log())


def test_dropout_is_random_and_independent() -> None:
    """Rate, and correlation of any weight with its neighbours, over 2**21 weights (5 standard deviations)."""
    kept = kept_weights(0.3, 11, (2, 8, 256, 512)).double()
    slack = 5 / math.sqrt(kept.numel())
    assert abs(kept.mean() - 0.7) < slack * math.sqrt(0.21)
    centred = (kept - 0.7) / math.sqrt(0.21)
    # Bit 3 of query and key chooses among the words of one Philox call: distance 8 is the one to doubt.
    for dim, distance in ((0, 1), (1, 1), (2, 1), (2, 8), (3, 1), (3, 8), (3, 16)):
        rolled = centred.roll(distance, dim)
        assert abs((centred * rolled).mean()) < slack, (dim, distance)
    assert not torch.equal(kept, kept_weights(0.3, 12, (2, 8, 256, 512)).double())


def test_dropout_of_a_weight_hangs_on_its_indices_alone() -> None:
    kept = kept_weights(0.5, 2**40 + 1, (3, 4, 40, 50))
    assert torch.equal(
        kept_weights(0.5, torch.tensor([2**40 + 1]), (1, 2, 30, 20), first_row=2), kept[2:, :2, :30, :20]
    )


def test_dropout_words_are_salmons() -> None:
    """Known answers of Philox4x32-7 (Random123's kat_vectors)."""
    zeros = torch.zeros(4, dtype=torch.int64)
    assert [int(word) for word in philox(zeros[0], tuple(zeros))] == [
        0x5F6FB709,
        0x0D893F64,
        0x4F121F81,
        0x4F730A48,
    ]
    ones = torch.full((4,), 2**32 - 1, dtype=torch.int64)
    assert [int(word) for word in philox(torch.tensor(-1), tuple(ones))] == [
        0x5207DDC2,
        0x45165E59,
        0x4D8EE751,
        0x8C52F662,
    ]


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
    both_ways = visible_keys(2, 4, window=2)
    assert both_ways is not None
    assert both_ways[0].tolist() == [[False, True, True, True], [False, False, True, True]]
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
