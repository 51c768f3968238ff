"""What the skinny linear's I/O model says of real sizes. Counted as modelled: `test_catalogue`."""

from __future__ import annotations

import pytest

from lit_eff.kernels.linear.io_model import LinearShape, linear_traffic, weight_bytes
from lit_eff.kernels.linear.plan import GROUP, Plan, plan_of


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
