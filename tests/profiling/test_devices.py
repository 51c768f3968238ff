"""The device table, lookups and rooflines."""

from __future__ import annotations

import pytest
import torch

from lit_eff.errors import UserError
from lit_eff.profiling.devices import DEVICES, Device, find_device, get_device
from lit_eff.profiling.roofline import roofline


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80 GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80 GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA B200", "B200"),
        ("h100 sxm", "H100 SXM"),
    ],
)
def test_torch_names_are_found(name: str, row: str) -> None:
    device = find_device(name)
    assert device is not None
    assert device.name == row


@pytest.mark.parametrize(
    "name", ["NVIDIA L40S", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA H2000", "cpu", ""]
)
def test_other_devices_are_not(name: str) -> None:
    assert find_device(name) is None


def test_unknown_device_names_the_nearest() -> None:
    with pytest.raises(UserError, match="H100 SXM"):
        get_device("H100 SXN")


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_rows_are_consistent(device: Device) -> None:
    assert 0 < device.shared_memory_per_sm - device.shared_memory_per_block <= 1024
    assert device.peaks["bfloat16"] == device.peaks["float16"]
    # Each generation halves the rate as the operands double; datasheets round.
    assert device.peaks["bfloat16"] == pytest.approx(2 * device.peaks["tf32"], rel=0.01)
    if "float8" in device.peaks:
        assert device.peaks["float8"] == pytest.approx(2 * device.peaks["bfloat16"], rel=0.01)
    assert ("float8" in device.peaks) == (device.capability >= 89)
    assert device.peaks["float32"] <= device.peaks["tf32"]
    # A generation fixes the rate per SM and clock, so the peak implies a clock that must be plausible
    # (GeForce accumulates in float32 at half rate, hence the wide range).
    per_clock = {80: 2048, 89: 1024, 90: 4096, 100: 8192}[device.capability]
    clock = device.peaks["bfloat16"] / device.sms / per_clock
    assert 1.0e9 < clock < 2.6e9, clock
    assert device.l2_bytes < device.hbm_bytes
    assert device.sources


def test_known_ridges() -> None:
    """About 153 FLOP a byte on the 80 GB A100, 295 on the H100, 206 on the H200."""
    for name, ridge in (("A100 SXM 80 GB", 153), ("H100 SXM", 295), ("H200 SXM", 206)):
        assert roofline(1, 1, get_device(name), "bfloat16").ridge == pytest.approx(ridge, abs=1)


def test_roofline_bounds() -> None:
    device = get_device("H100 SXM")
    copy = roofline(0, 3.35e12, device, "bfloat16")
    assert (copy.bound, copy.seconds) == ("memory", pytest.approx(1.0))
    product = roofline(2 * 8192**3, 3 * 2 * 8192**2, device, "bfloat16")
    assert product.bound == "compute"
    assert product.seconds == pytest.approx(2 * 8192**3 / 989.4e12)
    with pytest.raises(UserError, match="no float8 peak"):
        get_device("A100 SXM 40 GB").peak("float8")
    with pytest.raises(ValueError, match="roofline"):
        roofline(1, 0, device, "bfloat16")


@pytest.mark.gpu
def test_this_gpu_is_as_its_row_says() -> None:
    properties = torch.cuda.get_device_properties(0)
    device = find_device(properties.name)
    if device is None:
        pytest.skip(f"{properties.name} is not in the table")
    assert properties.multi_processor_count == device.sms
    assert properties.L2_cache_size == pytest.approx(device.l2_bytes, rel=0.02)
    assert properties.total_memory == pytest.approx(device.hbm_bytes, rel=0.1)
    assert properties.shared_memory_per_block_optin == device.shared_memory_per_block
    assert properties.shared_memory_per_multiprocessor == device.shared_memory_per_sm
    assert properties.max_threads_per_multi_processor == 32 * device.warps_per_sm
    assert properties.regs_per_multiprocessor == device.registers_per_sm
