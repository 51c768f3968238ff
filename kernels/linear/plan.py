"""How a product's work is cut: by the weight's shape and the device, never by the number of rows.

The shipped table, chosen by measurement on an H100 (docs/lab_log.md) for 16-bit weights; other devices and
dtypes take tiles that fit and do not spill.

Shapes: O weight rows, C input channels.
"""

from __future__ import annotations

from dataclasses import dataclass

ROW_TILE = 16  # input rows a program takes, however many there are: one matrix instruction
GROUP = 64  # channels of a row that share a scale, at the least


@dataclass(frozen=True)
class Plan:
    """A program takes ``block_o`` rows of the weight, a step ``lanes * chunk`` channels.

    ``early``: the launch may start before the one ahead of it has ended, where that was measured to pay.
    """

    block_o: int
    lanes: int
    chunk: int
    num_warps: int
    num_stages: int
    early: bool = False


# Hopper, 16-bit weights: up to so many rows of the weight. Few rows are shared out to more programs, whose
# warps take lanes of the channels; many fill the multiprocessors with tiles for the warpgroup's instruction.
HOPPER: dict[int, Plan] = {
    3072: Plan(16, 4, 64, 4, 6),
    8192: Plan(64, 1, 128, 4, 6, early=True),
    16384: Plan(64, 1, 128, 4, 4),
    2**30: Plan(64, 1, 128, 4, 4, early=True),
}
HOPPER_SHORT = Plan(64, 1, 64, 4, 6, early=True)  # many rows of fewer than SHORT channels
SHORT = 1024
# 99 KB of shared memory is what every device from sm_80 on gives.
PORTABLE_FEW = Plan(16, 4, 64, 4, 5)
PORTABLE = Plan(64, 1, 128, 4, 4)
INT8 = Plan(64, 1, GROUP, 4, 8)  # a step must not cross scale groups
FLOAT32 = Plan(32, 1, 32, 4, 3)


def plan_of(outputs: int, channels: int, element_bytes: int, capability: int) -> Plan:
    """``element_bytes`` are the weight's; ``capability`` is 10 * major + minor of the device."""
    if element_bytes == 4:
        return FLOAT32
    if element_bytes == 1:
        return INT8
    if not 90 <= capability < 120:
        return PORTABLE_FEW if outputs <= min(HOPPER) else PORTABLE
    if channels < SHORT and outputs > 16384:
        return HOPPER_SHORT
    return next(plan for most, plan in HOPPER.items() if outputs <= most)
