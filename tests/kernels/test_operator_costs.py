"""Costs of our operators' calls, against the catalogue's launches, whose bytes are counted to be right."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_eff.kernels.attention.io_model import AttentionShape, forward_flops
from lit_eff.kernels.attention.operator import NAMES
from lit_eff.kernels.attention.specimens import AttentionCase, PackedCase, launches, packed_launches
from lit_eff.kernels.operator_costs import operator_costs
from lit_eff.profiling.operators import Cost

COSTS = operator_costs()
CAPABILITY = 80


def arguments(**given: Any) -> list[Any]:
    """An attention operator's own, in its order."""
    plain: dict[str, Any] = {
        **dict.fromkeys(NAMES),
        "max_seqlen_q": 0,
        "max_seqlen_k": 0,
        "scale": 1.0,
        "causal": False,
        "dropout_p": 0.0,
    }
    return list({**plain, **given}.values())


def tensors(case: Any, batch: int, queries: int, keys: int) -> dict[str, Any]:
    sizes = ((queries, case.heads), (keys, case.kv_heads), (keys, case.kv_heads))
    made = (torch.empty(batch, *size, case.head_dim, dtype=case.element) for size in sizes)
    return dict(zip(("q_BTHD", "k_BSKD", "v_BSKD"), made, strict=True))


def total(cost: Cost) -> tuple[int, int]:
    return cost.read_bytes, cost.written_bytes


def moved(modelled: Any) -> tuple[int, int]:
    return (
        sum(each.traffic.read_bytes for each in modelled),
        sum(each.traffic.written_bytes for each in modelled),
    )


@pytest.mark.parametrize("documents", [0, 3])
def test_a_dense_call(documents: int) -> None:
    case = AttentionCase(2, 70, 70, 4, 2, 32, causal=True, window=40, documents=documents)
    torch.manual_seed(0)
    modelled = launches(case, torch.device("cpu"), CAPABILITY)
    torch.manual_seed(0)
    given = tensors(case, 2, 70, 70)
    if documents:  # drawn after q, k and v, as the catalogue does
        for shape in ((70, 4), (70, 2), (70, 2)):
            torch.randn(2, *shape, 32)
        ids = [torch.randint(0, documents, (2, 70)).sort(dim=1).values for _ in range(2)]
        given |= dict(zip(("documents_BT", "key_documents_BS"), ids, strict=True))
    call = arguments(**given, causal=True, window=40)
    split = 1 + (documents > 0)
    forward = COSTS["lit_eff::attention_forward"](call, {}, None)
    assert total(forward) == moved(modelled[:split])
    backward = COSTS["lit_eff::attention_backward"]([None, None, None, None, *call], {}, None)
    assert total(backward) == moved(modelled[split:])
    assert 2 * backward.flops == 5 * forward.flops > 0
    if not documents:
        assert forward.flops == forward_flops(AttentionShape(2, 70, 70, 4, 2, 32, causal=True, window=40))


def test_packed_sequences() -> None:
    case = PackedCase(((20, 30), (0, 5), (33, 33)), 2, 1, 16, causal=True)
    modelled = packed_launches(case, torch.device("cpu"), CAPABILITY)
    borders = [torch.tensor([0, *each]).cumsum(0).int() for each in ((20, 0, 33), (30, 5, 33))]
    call = arguments(
        **tensors(case, 1, 53, 68),
        cu_seqlens_q=borders[0],
        cu_seqlens_k=borders[1],
        max_seqlen_q=33,
        max_seqlen_k=33,
        causal=True,
    )
    assert total(COSTS["lit_eff::attention_forward"](call, {}, None)) == moved(modelled[:1])
    backward = COSTS["lit_eff::attention_backward"]([None, None, None, None, *call], {}, None)
    assert total(backward) == moved(modelled[1:])


def test_cross_entropy_counts_the_products_that_are_wanted() -> None:
    rows, width, columns = 6, 8, 32
    hiddens = [torch.empty(2, rows, width)]
    call = [hiddens, [torch.empty(columns, width)], [], torch.zeros(rows, dtype=torch.int64), None, [0, 0]]
    call += [[], [1.0, 1.0], torch.float32]
    product = 2 * rows * width * columns
    costs = [
        COSTS["lit_eff::cross_entropy"](call, {}, None),
        COSTS["lit_eff::cross_entropy_gradients"]([*call, [True, False, False]], {}, None),
        COSTS["lit_eff::cross_entropy_gradients"]([*call, [True, True, True]], {}, None),
    ]
    assert [cost.flops for cost in costs] == [2 * product, 3 * product, 6 * product]
    logits, matrix, hidden = 4 * rows * columns, 4 * columns * width, 4 * rows * width
    # Logits written by the product and read by the rows' kernel: once for statistics alone.
    assert costs[0].read_bytes > 2 * (logits + matrix + hidden)
    assert costs[0].written_bytes > 2 * logits
    assert costs[2].read_bytes > 2 * (2 * logits + 3 * logits + matrix + hidden)
