"""Sampled GPU counters go onto a timeline; what a GPU does not give is noted once."""

from __future__ import annotations

import sys
import time
from itertools import count

import pytest

from lit_eff.profiling.sampled import GpuSampler
from tests.profiling.fake_nvml import WATTS, FakeNvml


def test_each_gpus_counters_stand_on_the_timeline(nvml: FakeNvml) -> None:
    clock = count(10)
    with GpuSampler(lambda: float(next(clock)), interval=0.001) as sampler:
        while len(sampler.samples) < 40:
            time.sleep(0.002)
    first = [sample for sample in sampler.samples if sample.time == 10.0]
    values = {sample.counter: sample.value for sample in first}
    assert values == {
        "GPU 0: power, W": WATTS[0],
        "GPU 0: memory in use, B": 1 << 30,
        "GPU 0: SMs busy, %": 2,
        "GPU 0: occupancy, %": 3,
        "GPU 0: tensor cores busy, %": 5,
        "GPU 0: HBM bandwidth, %": 10,
        "GPU 0: NVLink sent, B/s": 61 * 1024**2,
        "GPU 0: NVLink received, B/s": 60 * 1024**2,
        "GPU 1: power, W": WATTS[1],
        "GPU 1: memory in use, B": 2 << 30,
        "GPU 1: SMs busy, %": 2,
        "GPU 1: occupancy, %": 3,
        "GPU 1: tensor cores busy, %": 5,
        "GPU 1: HBM bandwidth, %": 10,
    }
    times = [sample.time for sample in sampler.samples if sample.counter == "GPU 0: power, W"]
    assert times == [10.0 + index for index in range(len(times))]
    assert sampler.notes == []


def test_what_is_missing_is_noted_once_and_the_rest_delivered(nvml: FakeNvml) -> None:
    nvml.refuse.add("nvmlDeviceGetPowerUsage")
    nvml.gpm_supported = 0
    with GpuSampler(gpus=[0], interval=0.001) as sampler:
        while len(sampler.samples) < 5:
            time.sleep(0.002)
    assert {sample.counter for sample in sampler.samples} == {"GPU 0: memory in use, B"}
    assert len(sampler.notes) == 2
    assert "Hopper generation or later" in sampler.notes[0]
    assert "does not give the power of GPU 0: Not Supported" in sampler.notes[1]


def test_metrics_that_fail_later_are_noted_once_too(nvml: FakeNvml) -> None:
    nvml.refuse.add("nvmlGpmMetricsGet")
    with GpuSampler(gpus=[0], interval=0.001) as sampler:
        while len(sampler.samples) < 6:
            time.sleep(0.002)
    assert len(sampler.notes) == 1
    assert "no GPM metrics of GPU 0: Not Supported" in sampler.notes[0]


def test_memory_is_bounded_by_thinning(nvml: FakeNvml) -> None:
    taken: list[float] = []

    def clock() -> float:
        taken.append(float(len(taken)))
        return taken[-1]

    with GpuSampler(clock, gpus=[0], interval=1e-4, max_ticks=8) as sampler:
        while len(taken) < 40:
            time.sleep(0.001)
    times = sorted({sample.time for sample in sampler.samples})
    assert 4 <= len(times) < 8
    assert times[0] == 0
    assert times[-1] >= taken[-1] - 4  # evenly thinned: what is kept reaches to the end


def test_without_a_driver_the_note_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with GpuSampler() as sampler:
        pass
    assert sampler.samples == []
    assert sampler.notes == [
        "GPU counters unavailable: nvidia-ml-py is not installed; run: pip install 'lit_eff[gpu]'"
    ]


def test_a_block_too_short_to_sample_says_so(nvml: FakeNvml) -> None:
    with GpuSampler(gpus=[0], interval=60) as sampler:
        pass
    assert sampler.samples == []
    assert sampler.notes == ["no GPU counters: all ended before the first sample, 60 s in"]


@pytest.mark.gpu
def test_a_busy_gpu_shows() -> None:
    import torch

    x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    with GpuSampler(gpus=[0]) as sampler:
        end = time.perf_counter() + 1.5
        while time.perf_counter() < end:
            x @ x
            torch.cuda.synchronize()
    busy = [each.value for each in sampler.samples if each.counter == "GPU 0: tensor cores busy, %"]
    if not busy:
        pytest.skip("; ".join(sampler.notes))
    assert max(busy) > 20
