"""Energy by the best meter there is, and said by which: GPU counters, their power, RAPL, or watts x time."""

from __future__ import annotations

import sys
import time
from itertools import count
from pathlib import Path

import pytest

from lit_eff.errors import UserError
from lit_eff.profiling import energy
from lit_eff.profiling.energy import EnergyMeter, PowerMeter, RaplMeter
from lit_eff.profiling.nvml import find_gpus
from lit_eff.profiling.sampled import GPM
from lit_eff.profiling.unavailable import UnavailableError
from tests.profiling.fake_nvml import WATTS, FakeNvml


@pytest.fixture
def rapl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Counters of two packages and of one package's cores, which are in the package's already."""
    for name, microjoules in (("intel-rapl:0", 900), ("intel-rapl:1", 0), ("intel-rapl:0:0", 7)):
        zone = tmp_path / name
        zone.mkdir()
        (zone / "energy_uj").write_text(f"{microjoules}\n")
        (zone / "max_energy_range_uj").write_text("1000\n")
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    return tmp_path


def test_gpus_energy_is_the_difference_of_their_counters(nvml: FakeNvml) -> None:
    with EnergyMeter("cuda") as meter:
        nvml.now += 2
        assert meter.joules.value == pytest.approx(2 * sum(WATTS))
        nvml.now += 1
    nvml.now += 100  # after leaving
    assert meter.joules.value == pytest.approx(3 * sum(WATTS))
    assert (meter.joules.source, meter.joules.detail) == ("measured", "NVML energy counter, 2 GPUs")


def test_only_the_gpus_asked_for_count(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    with EnergyMeter("cuda", gpus=[1]) as meter:
        nvml.now += 1
    assert meter.joules.value == pytest.approx(WATTS[1])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bbbb")
    with EnergyMeter("cuda") as meter:
        nvml.now += 1
    assert meter.joules.value == pytest.approx(WATTS[1])
    with pytest.raises(UnavailableError, match="no GPU 1 among the 1 visible"):
        find_gpus([1])


def test_power_is_integrated_where_one_gpu_has_no_counter(nvml: FakeNvml) -> None:
    nvml.refuse.add("nvmlDeviceGetTotalEnergyConsumption")
    start = time.perf_counter()
    with EnergyMeter("cuda") as meter:
        time.sleep(0.02)
    elapsed = time.perf_counter() - start
    number = meter.joules
    assert "integrated, 2 GPUs" in number.detail
    assert 0.02 * sum(WATTS) <= number.value <= elapsed * sum(WATTS)


def test_a_power_integral_is_trapezia(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks, watts = count(), count(100, 100)
    monkeypatch.setattr(nvml, "nvmlDeviceGetPowerUsage", lambda handle: next(watts) * 1000)
    meter = PowerMeter(find_gpus([0]), interval=3600, clock=lambda: float(next(ticks)))
    assert meter.joules() == 150  # one second from 100 to 200 W
    assert meter.joules() == 150 + 250
    meter.stop()


def test_a_meter_lost_on_the_way_is_unavailable_not_less(nvml: FakeNvml) -> None:
    with EnergyMeter("cuda") as meter:
        nvml.refuse.add("nvmlDeviceGetTotalEnergyConsumption")
    assert meter.joules.source == "unavailable"
    assert "energy counter of GPU 0" in meter.joules.detail


def test_rapl_sums_packages_and_survives_their_wrap(rapl: Path) -> None:
    meter = RaplMeter()
    (rapl / "intel-rapl:0" / "energy_uj").write_text("100\n")  # 900 to 1000, and on to 100
    (rapl / "intel-rapl:1" / "energy_uj").write_text("50\n")
    (rapl / "intel-rapl:0:0" / "energy_uj").write_text("999\n")
    assert meter.joules() == pytest.approx(250e-6)
    assert meter.detail == "RAPL, 2 CPU packages, no memory"
    with EnergyMeter("cpu") as whole:
        (rapl / "intel-rapl:1" / "energy_uj").write_text("51\n")
    assert whole.joules.value == pytest.approx(1e-6)
    assert whole.joules.source == "measured"


def test_declared_watts_are_labelled_modelled(nvml: FakeNvml) -> None:
    nvml.refuse.add("nvmlInit")
    start = time.perf_counter()
    with EnergyMeter("cuda", watts=700, utilisation=0.5) as meter:
        time.sleep(0.01)
    number = meter.joules
    assert number.source == "modelled"
    assert 350 * 0.01 <= number.value <= 350 * (time.perf_counter() - start)
    assert "700 W x utilisation 0.5 x time; no meter: NVML does not give the GPU's driver" in number.detail


@pytest.mark.parametrize(("device", "says"), [("cuda", "nvidia-ml-py is not installed"), ("cpu", "no RAPL")])
def test_without_anything_it_says_why(
    device: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    with EnergyMeter(device) as meter:  # type: ignore[arg-type]
        pass
    assert (meter.joules.value, meter.joules.source) == (None, "unavailable")
    assert says in meter.joules.detail


def test_unreadable_counters_say_what_to_do(rapl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(zone: Path, name: str) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(RaplMeter, "_read", staticmethod(denied))
    with pytest.raises(UnavailableError, match=r"not readable: Permission denied; make .*energy_uj readable"):
        RaplMeter()


def test_impossible_watts_are_refused() -> None:
    with pytest.raises(UserError, match="watts -1; expected more than 0"):
        EnergyMeter("cpu", watts=-1)
    with pytest.raises(UserError, match=r"utilisation 1\.5; expected a share"):
        EnergyMeter("cpu", watts=100, utilisation=1.5)


def test_the_librarys_own_names_are_the_ones_we_use() -> None:
    library = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    fake = {name for name in vars(FakeNvml) if name.lower().startswith(("nvml", "c_nvml"))}
    assert {name for name, _ in GPM.values()} <= fake
    assert fake <= set(dir(library))
    request = library.c_nvmlGpmMetricsGet_t()
    request.version, request.numMetrics = library.NVML_GPM_METRICS_GET_VERSION, 1
    next(iter(request.metrics)).metricId = 10
    assert (request.metrics[0].metricId, request.metrics[0].nvmlReturn) == (10, 0)


@pytest.mark.gpu
def test_a_busy_gpu_draws_power() -> None:
    import torch

    x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    with EnergyMeter("cuda", gpus=[0]) as meter:
        end = time.perf_counter() + 1
        while time.perf_counter() < end:
            x @ x
            torch.cuda.synchronize()
    if meter.joules.value is None:
        pytest.skip(meter.joules.detail)
    assert 50 < meter.joules.value < 1500
