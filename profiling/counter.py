"""Counts accesses of one running kernel: by tensor, by kind and by source line, in bytes and sectors."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Literal

import numpy as np
import triton
from numpy.typing import NDArray

from lit_eff.profiling.traffic import LineTraffic

SECTOR_SHIFT = 5  # 32-byte sectors, the unit of every HBM and L2 transfer on NVIDIA GPUs
ELSEWHERE = "elsewhere"  # accesses outside every tensor argument
NOTHING = "nothing"  # accesses whose lanes are all off, which ask for no tensor's bytes
Kind = Literal["loads", "stores", "atomics"]
Place = tuple[str, int]  # file and line
# Code between a kernel's line and the counter: Triton's own, this package's, and NumPy's.
BETWEEN = ("<", *(f"{Path(file).parent}/" for file in (triton.__file__, __file__, np.__file__)))


@dataclass
class AccessCount:
    """Accesses of one kind (loads, stores or atomics) to one tensor."""

    requested_bytes: int = 0
    masked_lanes: int = 0
    sectors: set[int] | NDArray[np.bool_] = field(default_factory=set, repr=False)

    @property
    def sector_bytes(self) -> int:
        """Bytes of the distinct 32-byte sectors touched: the traffic of a perfect cache."""
        touched = len(self.sectors) if isinstance(self.sectors, set) else int(self.sectors.sum())
        return touched << SECTOR_SHIFT

    def add(self, other: AccessCount) -> None:
        """Those of another line to the same tensor."""
        self.requested_bytes += other.requested_bytes
        self.masked_lanes += other.masked_lanes
        if isinstance(self.sectors, set) and not self.sectors:
            self.sectors = other.sectors.copy()
        else:
            self.sectors = self.sectors | other.sectors  # type: ignore[operator]  # both sets, or both maps


@dataclass
class TensorCount:
    """All accesses to one tensor argument."""

    loads: AccessCount = field(default_factory=AccessCount)
    stores: AccessCount = field(default_factory=AccessCount)
    atomics: AccessCount = field(default_factory=AccessCount)


@dataclass
class KernelCount:
    """One launch: accesses by tensor argument, without ``p_``; views of one buffer are counted together.

    A line is the kernel's, or that of a device function which it calls, where it stands.
    """

    kernel: str
    accesses: dict[tuple[Place, str, Kind], AccessCount] = field(default_factory=dict, repr=False)

    @cached_property
    def tensors(self) -> dict[str, TensorCount]:
        """By tensor, all lines together; to be read when the launch is over."""
        tensors: dict[str, TensorCount] = {}
        for (_, tensor, kind), count in self.accesses.items():
            getattr(tensors.setdefault(tensor, TensorCount()), kind).add(count)
        return tensors

    @property
    def lines(self) -> tuple[LineTraffic, ...]:
        """By source line, tensor and kind, in the order of the source. Sectors are distinct within a line."""
        return tuple(
            LineTraffic(
                Path(file).name,
                line,
                linecache.getline(file, line).strip(),
                tensor,
                kind,
                count.requested_bytes,
                count.sector_bytes,
                count.masked_lanes,
            )
            for ((file, line), tensor, kind), count in sorted(self.accesses.items(), key=lambda item: item[0])
        )

    def _sum(self, kind: str, what: str) -> int:
        return sum(getattr(getattr(count, kind), what) for count in self.tensors.values())

    @property
    def read_bytes(self) -> int:
        return self._sum("loads", "requested_bytes")

    @property
    def written_bytes(self) -> int:
        return self._sum("stores", "requested_bytes")

    @property
    def atomic_bytes(self) -> int:
        return self._sum("atomics", "requested_bytes")

    @property
    def read_sector_bytes(self) -> int:
        return self._sum("loads", "sector_bytes")

    @property
    def written_sector_bytes(self) -> int:
        return self._sum("stores", "sector_bytes")

    @property
    def masked_lanes(self) -> int:
        return sum(self._sum(kind, "masked_lanes") for kind in ("loads", "stores", "atomics"))


class Counter:
    """Where the running kernel's tensors lie, and the counts so far."""

    def __init__(self) -> None:
        self.launches: list[KernelCount] = []
        self.running: KernelCount | None = None
        self.in_atomic = False
        self._starts: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._ends: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._names: list[str] = []
        self._own: dict[CodeType, bool] = {}

    def place(self, arguments: dict[str, Any]) -> None:
        """Learn the address range of each tensor argument of the kernel about to run."""
        ranges = sorted(
            (*extent, name.removeprefix("p_"))
            for name, value in _named_leaves(arguments)
            if (extent := _extent(value))
        )
        merged: list[tuple[int, int, str]] = []
        for start, end, name in ranges:
            if merged and start < merged[-1][1]:
                before = merged.pop()
                merged.append((before[0], max(before[1], end), f"{before[2]}+{name}"))
            else:
                merged.append((start, end, name))
        self._starts = np.array([start for start, _, _ in merged], np.uint64)
        self._ends = np.array([end for _, end, _ in merged], np.uint64)
        self._names = [name for _, _, name in merged]

    def access(self, kind: Kind, pointers: Any, mask: Any) -> None:
        """Count one access: ``pointers`` and ``mask`` are the interpreter's handles, ``mask`` may be None."""
        if self.running is None:
            return
        addresses = np.asarray(pointers.data).reshape(-1).astype(np.uint64)
        lanes = addresses.size
        if mask is not None:
            # A splatted scalar mask comes as integers, which would index instead of select.
            lanes_on = np.asarray(mask.data).astype(bool)
            addresses = addresses[np.broadcast_to(lanes_on, np.shape(pointers.data)).reshape(-1)]
        element = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        off = lanes - addresses.size
        place = self._place()
        for index, held in self._find(addresses):
            outside = ELSEWHERE if held.size else NOTHING
            name = outside if index is None else self._names[index]
            count = self.running.accesses.setdefault((place, name, kind), AccessCount())
            count.requested_bytes += held.size * element
            count.masked_lanes += off  # with the first: lanes that are off lie nowhere
            off = 0
            self._touch(count, held >> np.uint64(SECTOR_SHIFT), index)

    def _place(self) -> Place:
        """The innermost line of the kernel, or of a device function that it calls."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            code = frame.f_code
            own = self._own.get(code)
            if own is None:
                own = self._own[code] = not code.co_filename.startswith(BETWEEN)
            if own:
                return code.co_filename, frame.f_lineno
            frame = frame.f_back
        return ELSEWHERE, 0

    def _find(self, addresses: NDArray[np.uint64]) -> list[tuple[int | None, NDArray[np.uint64]]]:
        """Which tensors hold which of ``addresses``: nearly always one holds all."""
        if not addresses.size or not self._names:
            return [(None, addresses)]
        index = int(np.searchsorted(self._starts, addresses.min(), side="right")) - 1
        if index >= 0 and addresses.max() < self._ends[index]:
            return [(index, addresses)]
        places = np.searchsorted(self._starts, addresses, side="right") - 1
        places[(places >= 0) & (addresses >= self._ends[places])] = -1
        return [
            (int(place) if place >= 0 else None, addresses[places == place]) for place in np.unique(places)
        ]

    def _touch(self, count: AccessCount, sectors: NDArray[np.uint64], index: int | None) -> None:
        if index is None:
            assert isinstance(count.sectors, set)
            count.sectors.update(sectors.tolist())
            return
        first = int(self._starts[index]) >> SECTOR_SHIFT
        if isinstance(count.sectors, set):  # a bitmap over the tensor: faster than a set of a million numbers
            count.sectors = np.zeros((int(self._ends[index]) >> SECTOR_SHIFT) - first + 1, bool)
        count.sectors[(sectors - np.uint64(first)).astype(np.int64)] = True


def _named_leaves(arguments: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Arguments by name; a named tuple's fields by theirs, but ``pointer`` by the tuple's."""
    for name, value in arguments.items():
        if hasattr(value, "_fields"):
            fields = {name if field == "pointer" else field: each for field, each in value._asdict().items()}
            yield from _named_leaves(fields)
        else:
            yield name, value


def _extent(value: Any) -> tuple[int, int] | None:
    """First and one-past-last address of a tensor, tensor wrapper or descriptor; None for anything else."""
    tensor = value
    while tensor is not None and not hasattr(tensor, "untyped_storage"):
        tensor = getattr(tensor, "base", None)  # both wrappers and descriptors name their tensor so
    if tensor is None or tensor.numel() == 0:
        return None
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + reach * tensor.element_size()
