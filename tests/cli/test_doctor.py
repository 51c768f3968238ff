"""``lit-eff doctor`` on counters and energy: what is there, and what a missing piece turns off."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lit_eff.cli import doctor
from lit_eff.profiling import energy, measured
from tests.profiling.fake_nvml import FakeNvml
from tests.profiling.ncu_output import fake_ncu


@pytest.fixture
def ncu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An ncu on PATH, beside a driver that lets everybody count."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(measured, "DRIVER_PARAMETERS", tmp_path / "params")
    return str(fake_ncu(tmp_path, ""))


def test_ncu_is_named_by_its_path(ncu: str) -> None:
    finding = doctor.counters_finding()
    assert (finding.found, finding.effect) == (ncu, "measured HBM and SRAM traffic")


def test_counters_for_root_alone_turn_measuring_off(ncu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measured.DRIVER_PARAMETERS.write_text("RmProfilingAdminOnly: 1\n")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    finding = doctor.counters_finding()
    assert finding.found == f"{ncu}, but the driver gives counters to root only"
    assert "run as root, or load the nvidia module with NVreg_RestrictProfiling" in finding.effect


def test_without_ncu_the_rest_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(measured, "PLACES", ())
    finding = doctor.counters_finding()
    assert finding.found is None
    assert "only counted and modelled figures are shown (install NVIDIA Nsight Compute)" in finding.effect


def test_the_energy_meter_is_the_gpus_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert doctor.energy_finding().found == "NVML energy counter, 2 GPUs"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    finding = doctor.energy_finding()
    assert finding.found is None
    assert "GPUs: nvidia-ml-py is not installed; CPU: this machine shows no RAPL" in finding.effect
