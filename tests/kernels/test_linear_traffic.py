"""Bytes that the skinny linear requests, counted in the interpreter, equal the model to the byte."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from lit_eff.kernels.linear import call as linear_call
from lit_eff.kernels.linear import skinny_linear
from lit_eff.kernels.linear.io_model import LinearShape, linear_traffic, weight_bytes
from lit_eff.kernels.linear.plan import GROUP, Plan, plan_of
from lit_eff.profiling.counted import count_traffic
from lit_eff.profiling.counter import KernelCount
from tests.kernels.linear_cases import PLANS, LinearCase, cases


def requested(count: KernelCount, kind: str) -> dict[str, int]:
    sizes = {name: getattr(each, kind).requested_bytes for name, each in count.tensors.items()}
    return {name: size for name, size in sizes.items() if size}


def shape_of(case: LinearCase) -> LinearShape:
    """Of float32 tensors."""
    return LinearShape(
        case.rows,
        case.channels,
        case.outputs,
        input_bytes=4,
        weight_bytes=1 if case.groups else 4,
        output_bytes=4,
        bias_bytes=4 * case.bias,
        residual_bytes=4 * case.residual,
        gain_bytes=4 * (case.norm in ("rms", "layer")),
        shift_bytes=4 * (case.norm == "layer"),
        norm=case.norm is not None,
        centered=case.norm == "layer",
        scaled=case.groups > 0,
        swiglu=case.activation == "swiglu",
    )


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.lanes} lanes")
@pytest.mark.parametrize("case", [*cases(5), LinearCase(17, norm="rms"), LinearCase(70, 20, 20)], ids=str)
def test_counts_are_as_modelled(case: LinearCase, plan: Plan) -> None:
    arguments = case.draw(torch.float32)
    with mock.patch.object(linear_call, "plan_of", return_value=plan), count_traffic() as launches:
        skinny_linear(**arguments)
    modelled = linear_traffic(shape_of(case), plan)
    assert requested(launches[0], "loads") == modelled.reads
    assert requested(launches[0], "stores") == modelled.writes
    assert launches[0].atomic_bytes == 0


def test_the_weight_is_read_once() -> None:
    """Up to sixteen rows every program reads weights of its own; rows come from L2."""
    shape = LinearShape(16, 4096, 28672)
    traffic = linear_traffic(shape, Plan(64, 1, 128, 4, 4))
    assert traffic.reads["weight"] == weight_bytes(shape) == 28672 * 4096 * 2
    assert traffic.reads["x"] == weight_bytes(shape) // 4


@pytest.mark.parametrize("capability", [80, 90])
def test_shipped_plans(capability: int) -> None:
    """Scale groups end with steps; the order of the sums is one for all devices of 16-bit weights."""
    for outputs, channels in ((576, 576), (2048, 5632), (4096, 4096), (11264, 2048), (128256, 4096)):
        assert GROUP % plan_of(outputs, channels, 1, capability).chunk == 0
        lanes = {plan_of(outputs, channels, 2, each).lanes for each in (80, 86, 90, 120)}
        assert lanes == {plan_of(outputs, channels, 2, capability).lanes}
