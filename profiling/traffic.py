"""The record of what one kernel moves, computes and occupies: every number says where it came from.

``measured`` comes from hardware (events, ncu), ``counted`` from running or compiling the very kernel without
hardware, ``modelled`` from a formula; ``unavailable`` carries the reason instead of a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Source = Literal["measured", "counted", "modelled", "unavailable"]

# Quantities a record may hold, with their units. Requested bytes are what the kernel's loads and stores ask
# for; sector bytes are the distinct 32-byte sectors among them, the least any cache can leave.
UNITS: Mapping[str, str] = {
    "read_bytes": "B",
    "written_bytes": "B",
    "atomic_bytes": "B",
    "read_sector_bytes": "B",
    "written_sector_bytes": "B",
    "dram_read_bytes": "B",
    "dram_written_bytes": "B",
    "masked_lanes": "lanes",
    "flops": "FLOP",
    "shared_memory_bytes": "B",
    "registers_per_thread": "registers",
    "spill_bytes": "B",
    "seconds": "s",
}


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
class KernelTraffic:
    """One kernel at one shape.

    ``numbers`` maps a quantity (a key of :data:`UNITS`) to what each source says of it; ``baseline`` is
    another way to compute the same result, for the ratio. Where several kernels make one result, ``numbers``
    are their sums and ``parts`` the kernels in order.
    """

    kernel: str
    shape: dict[str, int | str | bool]
    numbers: dict[str, tuple[Number, ...]] = field(default_factory=dict)
    baseline: KernelTraffic | None = None
    parts: tuple[KernelTraffic, ...] = ()

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
        """Bytes requested of HBM, reads, writes and atomics together, or None where ``source`` lacks one."""
        read, written = self.get("read_bytes", source), self.get("written_bytes", source)
        if read is None or written is None:
            return None
        return int(read + written + (self.get("atomic_bytes", source) or 0))

    @property
    def counted_equals_modelled(self) -> bool:
        """Whether reads and writes, as counted, are the formula's to the byte."""
        return all(
            self.get(quantity, "counted") is not None
            and self.get(quantity, "counted") == self.get(quantity, "modelled")
            for quantity in ("read_bytes", "written_bytes")
        )

    @property
    def baseline_ratio(self) -> float | None:
        """The baseline's HBM bytes over this kernel's (each counted where there is a count)."""
        own, other = self.best_hbm_bytes, self.baseline.best_hbm_bytes if self.baseline else None
        return other[0] / own[0] if own and other and own[0] else None

    @property
    def best_hbm_bytes(self) -> tuple[int, Source] | None:
        """HBM bytes and where they come from: counted rather than modelled, None where neither is known."""
        sources: tuple[Source, ...] = ("counted", "modelled")
        known = ((self.hbm_bytes(source), source) for source in sources)
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
        return cls(values["kernel"], dict(values["shape"]), numbers, baseline, parts)
