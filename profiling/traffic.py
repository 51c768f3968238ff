"""The record of what one kernel moves, computes and occupies: every number says where it came from.

``measured`` comes from hardware (events, ncu), ``counted`` from running or compiling the very kernel without
hardware, ``modelled`` from a formula; ``unavailable`` carries the reason instead of a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Shape = Mapping[str, int | float | str | bool]
Source = Literal["measured", "counted", "modelled", "unavailable"]

# Quantities a record may hold, with their units. Requested bytes are what the kernel's loads and stores ask
# of HBM; sector bytes are the distinct 32-byte sectors among them, the least any cache can leave. DRAM and
# L2 bytes are what hardware moved. ``shared_memory_bytes`` is a program's footprint in SRAM, the other two
# are its traffic. ``occupancy`` is the share of an SM's warps: resident ones, as compiled, or active ones.
UNITS: Mapping[str, str] = {
    "read_bytes": "B",
    "written_bytes": "B",
    "atomic_bytes": "B",
    "read_sector_bytes": "B",
    "written_sector_bytes": "B",
    "masked_lanes": "lanes",
    "dram_read_bytes": "B",
    "dram_written_bytes": "B",
    "l2_bytes": "B",
    "shared_read_bytes": "B",
    "shared_written_bytes": "B",
    "shared_memory_bytes": "B",
    "registers_per_thread": "registers",
    "spill_bytes": "B",
    "programs_per_sm": "programs",
    "occupancy": "of warps",
    "flops": "FLOP",
    "seconds": "s",
    "joules": "J",
}


BEST: tuple[Source, ...] = ("measured", "counted", "modelled")
REQUESTED = ("read_bytes", "written_bytes")


@dataclass(frozen=True)
class Number:
    """A value (None if unavailable), its source, and by which tool or formula, or why there is none."""

    value: float | int | None
    source: Source
    detail: str = ""

    def __post_init__(self) -> None:
        if (self.value is None) != (self.source == "unavailable"):
            raise ValueError(f"{self.source} number with value {self.value}")


@dataclass(frozen=True)
class LineTraffic:
    """What one source line of a kernel asks of one tensor, counted. ``kind``: loads, stores or atomics."""

    file: str
    line: int
    text: str
    tensor: str
    kind: Literal["loads", "stores", "atomics"]
    requested_bytes: int
    sector_bytes: int
    masked_lanes: int


@dataclass(frozen=True)
class KernelTraffic:
    """One kernel at one shape.

    ``numbers`` maps a quantity (a key of :data:`UNITS`) to what each source says of it; ``baseline`` is
    another way to compute the same result, for the ratio. Where several kernels make one result, ``numbers``
    are their sums and ``parts`` the kernels in order. ``lines`` tell a count by source line.
    """

    kernel: str
    shape: Shape
    numbers: Mapping[str, tuple[Number, ...]] = field(default_factory=dict)
    baseline: KernelTraffic | None = None
    parts: tuple[KernelTraffic, ...] = ()
    lines: tuple[LineTraffic, ...] = ()

    def __post_init__(self) -> None:
        unknown = set(self.numbers) - set(UNITS)
        if unknown:
            raise ValueError(f"unknown quantities {sorted(unknown)}; expected some of {sorted(UNITS)}")

    def get(self, quantity: str, source: Source) -> float | int | None:
        """What ``source`` says of ``quantity``, or None."""
        for number in self.numbers.get(quantity, ()):
            if number.source == source:
                return number.value
        return None

    def hbm_bytes(self, source: Source) -> int | None:
        """Bytes requested of HBM, reads, writes and atomics together; measured: moved by DRAM, both ways.

        None where ``source`` lacks one of them.
        """
        names = ("dram_read_bytes", "dram_written_bytes") if source == "measured" else REQUESTED
        read, written = (self.get(name, source) for name in names)
        if read is None or written is None:
            return None
        atomics = 0 if source == "measured" else self.get("atomic_bytes", source) or 0
        return int(read + written + atomics)

    @property
    def counted_equals_modelled(self) -> bool:
        """Whether reads, writes and atomics, as counted, are the formula's to the byte."""
        both = [(self.get(quantity, "counted"), self.get(quantity, "modelled")) for quantity in REQUESTED]
        atomics = (self.get("atomic_bytes", "counted") or 0, self.get("atomic_bytes", "modelled") or 0)
        return all(one is not None and one == other for one, other in (*both, atomics))

    @property
    def baseline_ratio(self) -> float | None:
        """The baseline's HBM bytes over this kernel's, as :attr:`compared`."""
        return self.compared[1] / self.compared[0] if self.compared else None

    @property
    def compared(self) -> tuple[int, int, Source] | None:
        """HBM bytes of this kernel and of its baseline, from the best source that knows both."""
        for source in BEST:
            own = self.hbm_bytes(source)
            other = self.baseline.hbm_bytes(source) if self.baseline is not None else None
            if own and other is not None:
                return own, other, source
        return None

    @property
    def best_hbm_bytes(self) -> tuple[int, Source] | None:
        """HBM bytes and where they come from: measured before counted before modelled; None if unknown."""
        known = ((self.hbm_bytes(source), source) for source in BEST)
        return next(((value, source) for value, source in known if value is not None), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> KernelTraffic:
        """The inverse of :meth:`to_dict`."""
        numbers = {
            name: tuple(Number(**number) for number in each) for name, each in values["numbers"].items()
        }
        baseline = cls.from_dict(values["baseline"]) if values["baseline"] else None
        parts = tuple(cls.from_dict(part) for part in values.get("parts", ()))
        lines = tuple(LineTraffic(**line) for line in values.get("lines", ()))
        return cls(values["kernel"], dict(values["shape"]), numbers, baseline, parts, lines)
