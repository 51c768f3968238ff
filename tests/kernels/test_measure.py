"""Catalogued operations measured: each launch's counters and time stand beside its I/O model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lit_eff.errors import UserError
from lit_eff.kernels import measure
from lit_eff.kernels.catalogue import FOLDERS, get_operation
from lit_eff.kernels.measure import add_measurements, attach, measure_operations
from lit_eff.kernels.worker import Request, Work, request
from lit_eff.profiling.bracket import bracket
from lit_eff.profiling.devices import get_device
from lit_eff.profiling.measured import METRICS, MeasuredKernel
from lit_eff.profiling.traffic import KernelTraffic, Number
from tests.profiling.ncu_output import COPY, REFUSED, arguments, fake_ncu, page

SWIGLU = get_operation("swiglu")
TYPICAL = request("swiglu", SWIGLU.typical, "H100 SXM")
FORWARD, BACKWARD = "swiglu_forward_kernel", "swiglu_backward_kernel"


def timed(work: Work, requests: list[Request]) -> list[list[KernelTraffic]]:
    """What the worker's process says on a GPU."""
    assert work == "time"
    seconds = {"seconds": (Number(1e-4, "measured", "CUDA events"),)}
    return [[KernelTraffic(name, asked.case, seconds) for name in (FORWARD, BACKWARD)] for asked in requests]


@pytest.fixture
def ncu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on PATH, for a fake ncu; times come from no GPU."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(measure, "in_fresh_process", timed)
    return tmp_path


def test_counters_join_their_launches(ncu: Path) -> None:
    first = {name: value for name, value in COPY.items() if name != "gpu__time_duration.sum"}
    second = {**first, "dram__bytes_read.sum": "200000000"}
    other = ("void at::native::fill_kernel(float)", "", first)
    fake_ncu(ncu, page((FORWARD, "", first), other, (BACKWARD, "", second)))
    ((forward, backward),) = measure_operations([TYPICAL])
    assert forward.get("dram_read_bytes", "measured") == 1_048_832
    assert backward.get("dram_read_bytes", "measured") == 200_000_000
    assert backward.get("read_bytes", "modelled") == 3 * 8192 * 5632 * 2
    for record in (forward, backward):  # the time of record is that of the events, not of the replay
        assert [number.detail for number in record.numbers["seconds"]] == ["CUDA events"]
    given = arguments(ncu)
    assert given[given.index("--profile-from-start") + 1] == "off"
    assert "gpu__time_duration.sum" not in given[given.index("--metrics") + 1]
    assert "lit_eff.kernels.worker" in given


def test_without_permission_the_rest_is_delivered(ncu: Path) -> None:
    fake_ncu(ncu, REFUSED, code=1)
    ((forward, backward),) = measure_operations([TYPICAL])
    for record in (forward, backward):
        (number,) = record.numbers["dram_read_bytes"]
        assert number.source == "unavailable"
        assert "administrators only (ERR_NVGPUCTRPERM); run as root" in number.detail
        assert record.get("seconds", "measured") == 1e-4
        assert record.get("read_bytes", "modelled")
        assert bracket(record) is None


def test_without_a_gpu_everything_known_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    counted = KernelTraffic(FORWARD, {}, {"shared_memory_bytes": (Number(0, "counted"),)})
    ((record,),) = add_measurements([[counted]], [TYPICAL])
    assert record.numbers["shared_memory_bytes"][0] == Number(0, "counted")
    for quantity in METRICS:
        assert record.numbers[quantity][-1].source == "unavailable"
        assert "no NVIDIA GPU that CUDA can use; measure on" in record.numbers[quantity][-1].detail


def test_other_kernels_than_expected_are_an_error() -> None:
    known = timed("time", [TYPICAL])
    kernels = [MeasuredKernel(name, (), {}) for name in (BACKWARD, FORWARD)]
    with pytest.raises(UserError, match="one by one"):
        attach(known, kernels)


@pytest.mark.gpu
def test_every_operations_dram_reads_lie_between_the_bounds() -> None:
    """Distinct sectors <= DRAM read <= requested, for every launch that has a model of its sectors."""
    device = torch.cuda.get_device_name()
    requests = [request(name, get_operation(name).typical, device) for name in FOLDERS]
    for measured in measure_operations(requests):
        for record in measured:
            assert set(METRICS) <= set(record.numbers), record.numbers
            if record.numbers["dram_read_bytes"][0].source == "unavailable":
                pytest.skip(record.numbers["dram_read_bytes"][0].detail)
            found = bracket(record)
            assert found is not None, (record.kernel, record.shape)
            assert found.holds, (record.kernel, record.shape, found)
            seconds = record.get("seconds", "measured")
            assert seconds is not None
            bandwidth = get_device(device).hbm_bandwidth
            assert found.measured / seconds < 1.05 * bandwidth, (record.kernel, record.shape, seconds)
