"""What a torch.profiler trace tells of steps, modules, phases and kernels."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, schedule

from lit_eff.errors import UserError
from lit_eff.profiling.attribution import StepCosts, kernel_table, module_table, operator_table, step_table
from lit_eff.profiling.modules import ModuleScopes
from lit_eff.profiling.operators import Key, Total
from lit_eff.profiling.report import ReportTable
from lit_eff.profiling.scope import Scope
from lit_eff.profiling.torch_trace import TorchTrace, parse_torch_trace, read_torch_trace
from lit_eff.profiling.traffic import Number

NO_METER = Number(None, "unavailable", "no meter")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.up(x).relu())
        return out


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> TorchTrace:
    """Two steps on the CPU, read back from the file: the optimizer runs forward and backward as a closure."""
    torch.manual_seed(0)
    net, x = Net(), torch.randn(4, 8)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)

    def compute() -> Tensor:
        optimizer.zero_grad()
        loss = net(x).square().sum()
        loss.backward()
        return loss

    path = tmp_path_factory.mktemp("trace") / "x.pt.trace.json.gz"
    plan = schedule(wait=0, warmup=1, active=2, repeat=1)
    with (
        ModuleScopes(net, ranges=True),
        profile(
            activities=[ProfilerActivity.CPU],
            schedule=plan,
            on_trace_ready=lambda each: each.export_chrome_trace(str(path)),
        ) as profiler,
    ):
        for _ in range(3):
            optimizer.step(compute)
            profiler.step()
    return read_torch_trace(path)


def test_operators_have_step_module_and_phase(trace: TorchTrace) -> None:
    assert not trace.on_device
    assert [step.name for step in trace.steps] == ["step 0", "step 1"]
    places: dict[Any, int] = {}
    for work in trace.work:
        if work.name in (
            "aten::addmm",
            "aten::mm",
            "aten::_fused_adamw_",
            "aten::pow",
            "aten::threshold_backward",
        ):
            places[work.name, work.step, work.scope] = places.get((work.name, work.step, work.scope), 0) + 1
    expected = {
        ("aten::addmm", Scope("up", "forward")): 1,
        ("aten::addmm", Scope("down", "forward")): 1,
        ("aten::mm", Scope("up", "backward")): 1,  # its input needs no gradient
        ("aten::mm", Scope("down", "backward")): 2,
        ("aten::threshold_backward", Scope("Net", "backward")): 1,
        ("aten::pow", Scope("", "forward")): 1,
        ("aten::pow", Scope("", "backward")): 1,
        ("aten::_fused_adamw_", Scope("", "optimizer")): 1,
    }
    assert places == {(name, step, scope): n for (name, scope), n in expected.items() for step in (0, 1)}


def test_an_operators_own_time_leaves_out_what_it_calls(trace: TorchTrace) -> None:
    whole = sum(step.duration for step in trace.steps)
    assert 0 < sum(work.seconds for work in trace.work if work.step is not None) <= whole
    linear = [work for work in trace.work if work.name == "aten::linear"]
    assert linear
    assert all(0 <= work.seconds < work.duration for work in linear)


def test_the_timeline_is_bounded_and_keeps_the_longest(trace: TorchTrace) -> None:
    everything = trace.timeline()
    assert everything.dropped == 0
    assert {"step 0", "up", "down", "aten::addmm"} <= {span.name for span in everything.spans}
    few = trace.timeline(most=10)
    assert len(few.spans) == 10
    assert few.dropped == len(everything.spans) - 10
    assert {"step 0", "step 1"} <= {span.name for span in few.spans}
    kept = min(span.duration for span in few.spans)
    assert sorted((span.duration for span in everything.spans), reverse=True)[9] == kept


def _event(cat: str, name: str, ts: float, dur: float, tid: int = 1, pid: int = 7, **args: Any) -> Any:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": pid, "tid": tid, "args": args}


def device_trace() -> dict[str, Any]:
    """As on a GPU: kernels run after their launch, and the backward pass launches from its own thread."""
    backward = "autograd::engine::evaluate_function: MmBackward0"
    return {
        "traceEvents": [
            {"ph": "M", "name": "process_name", "pid": 7, "args": {"name": "python"}},
            _event("user_annotation", "ProfilerStep#3", 1000, 100),
            _event("user_annotation", "module: a", 1000, 30),
            _event("user_annotation", "module: a.inner", 1005, 20),
            _event("cpu_op", "aten::mm", 1006, 10, **{"Sequence number": 5, "Fwd thread id": 0}),
            _event("cuda_runtime", "cudaLaunchKernel", 1008, 2, correlation=1),
            _event("cuda_driver", "cuLaunchKernelEx", 1027, 1, correlation=2),
            _event("cpu_op", backward, 1040, 20, tid=2, **{"Sequence number": 5, "Fwd thread id": 1}),
            _event("cuda_runtime", "cudaLaunchKernel", 1045, 2, tid=2, correlation=3),
            _event("user_annotation", "ProfilerStep#4", 1100, 50),
            _event("gpu_user_annotation", "module: a", 1150, 20, pid=0, tid=13),
            _event("kernel", "gemm", 1010, 40, pid=0, tid=13, correlation=1),
            _event("kernel", "triton_norm", 1050, 10, pid=0, tid=13, correlation=2),
            _event("kernel", "gemm", 1120, 20, pid=0, tid=13, correlation=3),
            _event("gpu_memset", "Memset", 1145, 1, pid=0, tid=14, correlation=99),
        ]
    }


def test_kernels_belong_to_the_step_and_module_that_launched_them() -> None:
    trace = parse_torch_trace(device_trace())
    assert trace.on_device
    found = [(work.name, work.scope, work.step, work.track) for work in trace.work]
    assert found == [
        ("gemm", Scope("a.inner", "forward"), 0, "GPU 0/stream 13"),
        ("triton_norm", Scope("a", "forward"), 0, "GPU 0/stream 13"),
        ("gemm", Scope("a.inner", "backward"), 0, "GPU 0/stream 13"),  # runs in step 4, launched in step 3
        ("Memset", Scope("", "forward"), 1, "GPU 0/stream 14"),
    ]
    assert trace.work[0].start == pytest.approx(10e-6)


def _rows(table: ReportTable) -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_tables_share_out_time_bytes_and_energy() -> None:
    trace = parse_torch_trace(device_trace())
    totals = {
        Key("a.inner", "forward", "aten::mm"): Total("", 2, 3_000_000, 1_000_000, 5_000_000_000),
        Key("b", "forward", "aten::add"): Total("", 2, 10, 10, 0),
    }
    costs = StepCosts(totals, 2, Number(7.1, "measured", "a counter"))
    modules = _rows(module_table(trace, costs, most=2))
    assert [(row["module"], row["phase"]) for row in modules] == [
        ("a.inner", "forward"),
        ("a.inner", "backward"),
    ]
    first = modules[0]  # 40 us of kernels in two steps
    assert first["ms (measured)"] == pytest.approx(0.020)
    assert first["share of time"] == pytest.approx(40 / 71)
    assert first["MB (modelled)"] == pytest.approx(2.0)
    assert first["GFLOP (modelled)"] == pytest.approx(2.5)
    assert first["GB/s"] == pytest.approx(2e6 / 20e-6 / 1e9)
    assert first["J"] == pytest.approx(7.1 * 40 / 71 / 2)
    assert first["source of J"] == "measured: a counter"
    assert len(module_table(trace, costs, most=99).rows) == 5  # "b" too, which took no time

    kernels = _rows(kernel_table(trace, most=9))
    assert [row["kernel"] for row in kernels] == ["gemm", "triton_norm", "Memset"]
    assert kernels[0]["calls"] == 1.0
    assert (kernels[0]["most for module"], kernels[0]["phase"]) == ("a.inner", "forward")
    assert kernels[0]["of its time"] == pytest.approx(40 / 60)

    layers = {
        Key("blocks.0.mlp", "forward", "aten::mm"): Total("once", 2, 30, 20, 100),
        Key("blocks.1.mlp", "forward", "aten::mm"): Total("once", 2, 30, 20, 100),
        Key("blocks.1.mlp", "backward", "aten::mm"): Total("once", 2, 30, 40, 100),
    }
    operators = _rows(operator_table(StepCosts(layers, 2, NO_METER), most=9))
    assert [(row["module"], row["phase"], row["calls"]) for row in operators] == [
        ("blocks.*.mlp", "forward", 2.0),
        ("blocks.*.mlp", "backward", 1.0),
    ]
    assert operators[0]["MB read"] == pytest.approx(30e-6)
    assert operators[0]["source"] == "modelled: once"

    steps = _rows(step_table(trace, NO_METER))
    assert [row["kernels, ms (measured)"] for row in steps] == pytest.approx([0.070, 0.001])
    assert steps[0]["J"] is None
    assert steps[0]["source of J"] == "unavailable: no meter"


def test_a_file_that_is_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "x.json.gz"
    with gzip.open(path, "wt") as file:
        json.dump({"other": 1}, file)
    with pytest.raises(UserError, match="no trace of torch"):
        read_torch_trace(path)
    with pytest.raises(UserError, match="no trace of torch"):
        read_torch_trace(tmp_path / "absent.json")
