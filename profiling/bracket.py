"""Holds measured DRAM reads between two bounds: distinct sectors <= DRAM read <= requested bytes.

From cold caches every distinct 32-byte sector that a kernel reads comes from DRAM once, and no byte comes
more often than it is asked for. Where a measurement sits between the two tells how much caches served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lit_eff.profiling.report import ReportTable
from lit_eff.profiling.traffic import KernelTraffic, Source

# What a bound may be missed by. A share for what hardware does with the kernel's own data: DRAM is read in
# atoms of 64 bytes, two sectors. Bytes for what it reads beside them: instructions, constants, page tables.
SHARE = 0.02
BESIDE_BYTES = 256 * 1024
NEAR = 0.05  # of the way: as good as at a bound


@dataclass(frozen=True)
class Bracket:
    """``least`` <= ``measured`` <= ``most``, in bytes, and where the measurement sits in between.

    ``position`` is 0 at ``least`` and 1 at ``most``, beyond them where a bound is missed. ``holds`` allows
    for the tolerance: 2% on either side, and 256 KiB above for what is read beside the kernel's tensors.
    """

    least: int
    measured: int
    most: int

    @property
    def holds(self) -> bool:
        return self.least * (1 - SHARE) <= self.measured <= self.most * (1 + SHARE) + BESIDE_BYTES

    @property
    def position(self) -> float:
        if self.most == self.least:
            return 0.0 if self.measured <= self.most else 1.0
        return (self.measured - self.least) / (self.most - self.least)

    @property
    def sentence(self) -> str:
        """Where the measurement sits, and what that says, in a sentence."""
        if not self.holds and self.measured < self.least:
            return (
                f"below the lower bound by {self.least - self.measured:,} bytes: the kernel reads what it "
                "wrote before, or fewer sectors than the model says"
            )
        if not self.holds:
            return (
                f"above the upper bound by {self.measured - self.most:,} bytes: spills, or lines fetched "
                "for a few of their bytes"
            )
        if self.most <= self.least * (1 + SHARE):
            return "at both bounds, which are one: nothing is read twice"
        if self.position <= NEAR:
            return "at the lower bound: caches served every re-read"
        if self.position >= 1 - NEAR:
            return "at the upper bound: caches served no re-read"
        return f"between the bounds: caches served {1 - self.position:.0%} of the re-reads, DRAM the rest"


def bracket(record: KernelTraffic) -> Bracket | None:
    """The bounds and the measurement of a record, or None where it lacks one of the three.

    The lower bound is the model's where it has one (it leaves out what a kernel reads after writing it),
    else the count's. Atomics read before they write, so they count as requested.
    """
    measured = record.get("dram_read_bytes", "measured")
    least = _first(record, "read_sector_bytes", ("modelled", "counted"))
    read = _first(record, "read_bytes", ("counted", "modelled"))
    if measured is None or least is None or read is None:
        return None
    most = read + (_first(record, "atomic_bytes", ("counted", "modelled")) or 0)
    return Bracket(least, int(measured), max(most, least))


def bracket_table(records: Sequence[KernelTraffic]) -> ReportTable:
    """A row a record: bounds and measurement, whether it holds, and where it sits, or why there is none."""
    rows = []
    for record in records:
        found, seconds = bracket(record), record.get("seconds", "measured")
        shape = ", ".join(f"{name} {value}" for name, value in record.shape.items())
        figures: tuple[int | str | None, ...] = (None,) * 4
        if found is not None:
            figures = (found.least, found.measured, found.most, "yes" if found.holds else "NO")
        rows.append(
            (
                record.kernel,
                shape,
                None if seconds is None else round(1e6 * seconds, 2),
                *figures,
                _missing(record) if found is None else found.sentence,
            )
        )
    return ReportTable(
        "DRAM reads between their bounds",
        "Distinct 32-byte sectors read (modelled, else counted) <= DRAM read from cold caches (measured by "
        f"ncu) <= bytes requested (counted, else modelled); {SHARE:.0%} of tolerance, and "
        f"{BESIDE_BYTES // 1024} KiB above for instructions, constants and page tables. us by CUDA events.",
        ("kernel", "shape", "us", "sectors, B", "DRAM read, B", "requested, B", "holds", "where it sits"),
        tuple(rows),
    )


def _missing(record: KernelTraffic) -> str:
    """Why a record has no bracket."""
    for number in record.numbers.get("dram_read_bytes", ()):
        if number.source == "unavailable":
            return f"unavailable: {number.detail}"
    if record.get("dram_read_bytes", "measured") is None:
        return "unavailable: not measured"
    return "unavailable: its model does not tell the sectors that it reads"


def _first(record: KernelTraffic, quantity: str, sources: tuple[Source, ...]) -> int | None:
    for source in sources:
        value = record.get(quantity, source)
        if value is not None:
            return int(value)
    return None
