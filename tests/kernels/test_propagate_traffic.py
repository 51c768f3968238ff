"""Bytes that propagation requests, counted in the interpreter, equal the model to the byte."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from lit_eff.kernels.linear import call as linear_call
from lit_eff.kernels.linear.io_model import LinearShape
from lit_eff.kernels.linear.plan import Plan
from lit_eff.kernels.propagate.io_model import PropagateShape, propagate_traffic
from lit_eff.profiling.counted import count_traffic
from tests.kernels.counting import requested
from tests.kernels.linear_cases import PLANS
from tests.kernels.propagate_cases import CASES, PropagateCase, run

F32 = torch.float32


def shape_of(case: PropagateCase, arguments: dict[str, Any]) -> PropagateShape:
    """Of float32 tensors."""
    counts_B = arguments.get("query_lengths_B", torch.full((case.batch,), case.queries))
    product = LinearShape(
        case.batch * case.queries,
        case.channels,
        2 * case.kv_heads * case.head_dim,
        input_bytes=4,
        weight_bytes=4,
        output_bytes=4,
        bias_bytes=4 * case.bias,
        gain_bytes=4 * (case.norm in ("rms", "layer")),
        shift_bytes=4 * (case.norm == "layer"),
        norm=case.norm is not None,
        centered=case.norm == "layer",
    )
    tokens_BT = torch.arange(case.queries) < counts_B[:, None]
    return PropagateShape(
        case.layers,
        product,
        case.kv_heads,
        case.head_dim,
        case.rotary,
        tuple(tokens_BT.flatten().tolist()),
        query_length_bytes=4 * ("query_lengths_B" in arguments),
        position_bytes=8 * case.positions,
        page_bytes=4 * (case.page > 0),
        k_norm_bytes=4 * case.k_norm,
    )


LANES, LANE = PLANS
COUNTED = [*((case, LANE) for case in CASES), (CASES[0], LANES), (PropagateCase(batch=9, page=4), LANES)]


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(("case", "plan"), COUNTED, ids=str)
def test_counts_are_as_modelled(case: PropagateCase, plan: Plan) -> None:
    arguments = case.draw(F32)
    if case.batch == 9:  # two row tiles, of which the first has no token
        arguments["query_lengths_B"] = torch.tensor(8 * [0] + [1], dtype=torch.int32)
    with mock.patch.object(linear_call, "plan_of", return_value=plan), count_traffic() as launches:
        run(arguments)
    modelled = propagate_traffic(shape_of(case, arguments), plan)
    for count, traffic in zip(launches, modelled, strict=True):
        assert requested(count, "loads") == traffic.reads
        assert requested(count, "stores") == traffic.writes
        assert count.atomic_bytes == 0


@pytest.mark.usefixtures("interpreter")
def test_without_an_exit_no_weight_is_read() -> None:
    case = PropagateCase()
    arguments = case.draw(F32) | {"query_lengths_B": torch.zeros(3, dtype=torch.int32)}
    with count_traffic() as launches:
        found = run(arguments)
    assert set(requested(launches[0], "loads")) == {"lengths", "query_lengths"}
    for got, name in zip(found, ("k_cache", "v_cache"), strict=True):
        assert torch.equal(got, arguments[name])
