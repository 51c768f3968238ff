"""L2's bandwidth lies above HBM's, and within what its slices could move."""

from __future__ import annotations

import pytest
import torch

from lit_eff.kernels.l2_bandwidth import measure_l2_bandwidth
from lit_eff.profiling.devices import find_device

pytestmark = pytest.mark.gpu


def test_l2_is_faster_than_hbm() -> None:
    device = find_device(torch.cuda.get_device_name())
    if device is None:
        pytest.skip(f"{torch.cuda.get_device_name()} is not in the device table")
    found = measure_l2_bandwidth(torch.device("cuda"))
    assert found.source == "measured"
    assert found.value is not None
    print(f"{device.name}: {found.value / 1e12:.2f} TB/s; {found.detail}")
    assert 1.1 * device.hbm_bandwidth < found.value < 8 * device.hbm_bandwidth
