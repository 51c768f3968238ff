"""How many programs of a kernel an SM holds at once, and which of its resources runs out first.

The arithmetic is that of NVIDIA's occupancy calculator (``cuda_occupancy.h`` of the CUDA toolkit) for compute
capabilities 8.0 to 10.0; limits are those of the device table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lit_eff.errors import UserError
from lit_eff.profiling.devices import Device

Limit = Literal["warps", "blocks", "registers", "shared memory"]

WARP = 32  # threads
MOST_WARPS = 32  # of a block, which has 1,024 threads at most
MOST_REGISTERS = 255  # of a thread
PARTITIONS = 4  # of an SM, each with a scheduler and a quarter of the registers
REGISTER_UNIT = 256  # registers are handed out to a warp in such pieces
SHARED_UNIT = 128  # bytes of shared memory, handed out to a block
RESERVED_SHARED = 1024  # bytes of each block that the driver keeps for itself


@dataclass(frozen=True)
class Occupancy:
    """``limits`` are the programs that each resource alone would allow; the least of them are resident."""

    device: str
    num_warps: int
    warps_per_sm: int
    limits: dict[Limit, int]

    @property
    def programs_per_sm(self) -> int:
        """Programs resident on an SM; 0 if it cannot hold one, which makes a launch fail."""
        return min(self.limits.values())

    @property
    def share(self) -> float:
        """Resident warps over those that an SM has room for."""
        return self.programs_per_sm * self.num_warps / self.warps_per_sm

    @property
    def limited_by(self) -> tuple[Limit, ...]:
        """What runs out first; several where they run out together."""
        return tuple(limit for limit, programs in self.limits.items() if programs == self.programs_per_sm)

    @property
    def sentence(self) -> str:
        """What limits it, in words."""
        limits = " and ".join(self.limited_by)
        if not self.programs_per_sm:
            return f"an SM of {self.device} cannot hold one program: too much of its {limits}"
        return f"limited by {limits}"


def occupancy(
    device: Device, num_warps: int, registers_per_thread: int, shared_memory_bytes: int
) -> Occupancy:
    """Programs of ``num_warps`` warps that an SM of ``device`` holds.

    Args:
        registers_per_thread: as the assembler reports them, at least 1.
        shared_memory_bytes: of a program, without what the driver reserves.

    Raises:
        UserError: for a number that no kernel has.
    """
    if num_warps < 1 or registers_per_thread < 1 or shared_memory_bytes < 0:
        raise UserError(
            f"a kernel of {num_warps} warps, {registers_per_thread} registers a thread and "
            f"{shared_memory_bytes} bytes of shared memory; expected at least 1, 1 and 0"
        )
    return Occupancy(
        device.name,
        num_warps,
        device.warps_per_sm,
        {
            "warps": 0 if num_warps > MOST_WARPS else device.warps_per_sm // num_warps,
            "blocks": device.blocks_per_sm,
            "registers": _by_registers(device, num_warps, registers_per_thread),
            "shared memory": by_shared_memory(device, shared_memory_bytes),
        },
    )


def by_shared_memory(device: Device, shared_memory_bytes: int) -> int:
    """Programs that an SM has SRAM for, each with what the driver reserves; 0 if not for one."""
    return device.shared_memory_per_sm // _rounded(shared_memory_bytes + RESERVED_SHARED, SHARED_UNIT)


def _by_registers(device: Device, num_warps: int, registers_per_thread: int) -> int:
    """A warp takes registers of its own partition; a launch is checked as if each partition took as many."""
    of_warp = _rounded(registers_per_thread * WARP, REGISTER_UNIT)
    checked = of_warp * _rounded(num_warps, PARTITIONS)
    if registers_per_thread > MOST_REGISTERS or checked > device.registers_per_sm:
        return 0
    return device.registers_per_sm // PARTITIONS // of_warp * PARTITIONS // num_warps


def _rounded(value: int, unit: int) -> int:
    return -(-value // unit) * unit
