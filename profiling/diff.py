"""Two profile reports side by side: what each kernel moves now and moved before, and whether it is more.

Counted and modelled bytes are exact, so one byte more is a regression; measured ones vary from run to run by
a share that is tolerated.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lit_eff.profiling.report import ProfileReport, ReportTable
from lit_eff.profiling.text_table import as_text
from lit_eff.profiling.titles import shape_text
from lit_eff.profiling.traffic import BEST, UNITS, KernelTraffic, Shape, Source

TOLERANCE = 0.02  # of bytes measured twice on one device
Key = tuple[str, str, int]
Reading = Callable[[KernelTraffic, Source], float | None]


@dataclass(frozen=True)
class Change:
    """A number that both reports have from the same source, and that differs."""

    kernel: str
    shape: Shape
    quantity: str
    source: Source
    before: float
    after: float

    @property
    def share(self) -> float | None:
        """What came on top, as a share of what was; None if there was nothing."""
        return (self.after - self.before) / self.before if self.before else None

    def exceeds(self, tolerance: float) -> bool:
        """Whether it grew: at all, or if it is measured, by more than the ``tolerance``."""
        allowed = 1 + tolerance if self.source == "measured" else 1
        return self.after > self.before * allowed


@dataclass(frozen=True)
class Comparison:
    """Two reports by name. Records are the same kernel if name and shape are equal, in their order.

    ``sums`` are the changes of what a kernel moves in all (requested, in sectors, or as DRAM measured it),
    ``changes`` those of every quantity. ``new`` and ``gone`` are in one report only. ``notes`` say what
    could not be compared; ``tolerance`` is the share that measured bytes may grow by.
    """

    before: str
    after: str
    matched: int
    sums: tuple[Change, ...]
    changes: tuple[Change, ...]
    new: tuple[KernelTraffic, ...]
    gone: tuple[KernelTraffic, ...]
    notes: tuple[str, ...]
    tolerance: float

    @property
    def regressions(self) -> tuple[Change, ...]:
        """The kernels that move more bytes now, by each source that says so."""
        return tuple(change for change in self.sums if change.exceeds(self.tolerance))

    @property
    def more_bytes(self) -> bool:
        """Whether a kernel moves more bytes than before, beyond what measurements may vary by."""
        return bool(self.regressions)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; kernels in one report only are told by name and shape."""
        only = {
            name: [{"kernel": each.kernel, "shape": dict(each.shape)} for each in records]
            for name, records in (("new", self.new), ("gone", self.gone))
        }
        return {
            **asdict(self),
            **only,
            "regressions": [asdict(change) for change in self.regressions],
            "more_bytes": self.more_bytes,
        }


def compare(before: ProfileReport, after: ProfileReport, tolerance: float = TOLERANCE) -> Comparison:
    """Match the records of two reports and find every number that changed."""
    old, now = _keyed(before.records), _keyed(after.records)
    pairs = [(old[key], now[key]) for key in old if key in now]
    notes, sources = [], list(BEST)
    devices = [report.environment.get("device") for report in (before, after)]
    if devices[0] != devices[1]:
        sources.remove("measured")
        notes.append(f"measured numbers are not compared: {devices[0]} then, {devices[1]} now")
    lost = Counter(
        source
        for one, other in pairs
        for quantity in one.numbers
        for source in sources
        if one.get(quantity, source) is not None and other.get(quantity, source) is None
    )
    notes += [f"{count} {source} numbers of then have none now" for source, count in lost.items()]
    return Comparison(
        before.name,
        after.name,
        len(pairs),
        tuple(change for pair in pairs for change in _changes(pair, sources, SUMS)),
        tuple(change for pair in pairs for change in _changes(pair, sources, QUANTITIES)),
        tuple(record for key, record in now.items() if key not in old),
        tuple(record for key, record in old.items() if key not in now),
        tuple(notes),
        tolerance,
    )


def _keyed(records: Sequence[KernelTraffic]) -> dict[Key, KernelTraffic]:
    """By kernel, shape and the how-manieth of these; a shape read from JSON has lists for tuples."""
    seen: Counter[tuple[str, str]] = Counter()
    keyed = {}
    for record in records:
        name = (record.kernel, json.dumps(dict(record.shape), sort_keys=True))
        keyed[*name, seen[name]] = record
        seen[name] += 1
    return keyed


def _changes(
    pair: tuple[KernelTraffic, KernelTraffic], sources: Sequence[Source], readings: Mapping[str, Reading]
) -> Iterator[Change]:
    one, other = pair
    for name, reading in readings.items():
        for source in sources:
            before, after = reading(one, source), reading(other, source)
            if before is not None and after is not None and before != after:
                yield Change(other.kernel, other.shape, name, source, before, after)


def _sector_bytes(record: KernelTraffic, source: Source) -> float | None:
    read, written = (record.get(f"{way}_sector_bytes", source) for way in ("read", "written"))
    return None if read is None or written is None else read + written


def _quantity(name: str) -> Reading:
    return lambda record, source: record.get(name, source)


SUMS: Mapping[str, Reading] = {"HBM bytes": KernelTraffic.hbm_bytes, "sector bytes": _sector_bytes}
QUANTITIES: Mapping[str, Reading] = {name: _quantity(name) for name in UNITS}


def comparison_text(comparison: Comparison) -> str:
    """The comparison for a terminal: what moves more or less, every change behind it, and the verdict."""
    lines = [f"{comparison.before} -> {comparison.after}; kernels in both: {comparison.matched}"]
    for table in comparison_tables(comparison):
        if table.rows:
            lines += ["", table.title, as_text(table)]
    lines += ["", *(f"note: {note}" for note in comparison.notes)] if comparison.notes else [""]
    kernels = len({(change.kernel, json.dumps(dict(change.shape))) for change in comparison.regressions})
    beyond = f"measured: by more than {comparison.tolerance:.0%}"
    return "\n".join([*lines, f"kernels that move more bytes ({beyond}): {kernels or 'none'}"])


def comparison_tables(comparison: Comparison) -> tuple[ReportTable, ...]:
    """What kernels move in all, every quantity that changed, and the kernels of one report only."""
    columns = ("kernel", "shape", "quantity", "source", "before", "after", "change")
    only = [
        (record.kernel, shape_text(record.shape), which, *(record.best_hbm_bytes or (None, None)))
        for which, records in (("new", comparison.new), ("gone", comparison.gone))
        for record in records
    ]
    return (
        ReportTable(
            "Bytes of HBM",
            f"Counted and modelled bytes are exact; measured ones may vary by {comparison.tolerance:.0%}.",
            (*columns, "more"),
            tuple(
                (*_row(change), "MORE" if change.exceeds(comparison.tolerance) else None)
                for change in comparison.sums
            ),
        ),
        ReportTable(
            "All changes", "Each number by its source.", columns, tuple(map(_row, comparison.changes))
        ),
        ReportTable(
            "Kernels in one report only",
            "With the bytes of HBM that they move, from the best source that knows.",
            ("kernel", "shape", "which", "bytes", "source"),
            tuple(only),
        ),
    )


def _row(change: Change) -> tuple[str | float | None, ...]:
    share = None if change.share is None else f"{change.share:+.2%}"
    return (
        change.kernel,
        shape_text(change.shape),
        change.quantity,
        change.source,
        change.before,
        change.after,
        share,
    )
