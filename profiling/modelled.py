"""Bytes by formula: what a kernel's I/O model says that a launch requests of HBM.

The formulas themselves stand beside the kernels (``kernels/*/io_model.py``), as pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from lit_eff.profiling.launch import Launch

STATISTIC_BYTES = 4  # a float32 or int32
SECTOR_BYTES = 32


@dataclass(frozen=True)
class Traffic:
    """Bytes requested of HBM by one launch, by tensor.

    ``atomics`` are read-modify-writes, each counted once. ``sectors`` are the bytes of the distinct 32-byte
    sectors read; None where the model does not say. ``own`` are those of them that the launch has written by
    then: L2 may serve them, so the least that a cold cache leaves to DRAM is without them.
    """

    reads: dict[str, int] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)
    atomics: dict[str, int] = field(default_factory=dict)
    sectors: int | None = field(default=None, kw_only=True)
    own: int = field(default=0, kw_only=True)

    @property
    def read_bytes(self) -> int:
        return sum(self.reads.values())

    @property
    def written_bytes(self) -> int:
        return sum(self.writes.values())

    @property
    def atomic_bytes(self) -> int:
        return sum(self.atomics.values())

    @property
    def total(self) -> int:
        return self.read_bytes + self.written_bytes + self.atomic_bytes


@dataclass(frozen=True)
class ModelledLaunch:
    """A launch with what its I/O model says of it; ``flops`` are those of the result, not of the tiles."""

    launch: Launch
    traffic: Traffic
    flops: int = 0


def sector_bytes(ranges: Iterable[tuple[int, int]]) -> int:
    """Bytes of the distinct 32-byte sectors that the bytes [start, stop) of one tensor touch.

    The tensor starts at a sector, as PyTorch allocates; ranges may overlap and come in any order.
    """
    sectors = end = 0
    for start, stop in sorted(ranges):
        first, last = max(start // SECTOR_BYTES, end), -(-stop // SECTOR_BYTES)
        if start < stop and first < last:
            sectors += last - first
            end = last
    return sectors * SECTOR_BYTES


def whole_sectors(*sizes: int) -> int:
    """Of tensors of these sizes in bytes, read whole."""
    return sum(sector_bytes([(0, size)]) for size in sizes)
