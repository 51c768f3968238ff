"""The result of one ``lit-eff profile``: what every page, plot and comparison is made from.

Kept as ``profile.json`` in the run folder. Reading refuses a file of a newer version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_eff.errors import UserError
from lit_eff.files import atomic_path
from lit_eff.profiling.timeline import Timeline
from lit_eff.profiling.traffic import KernelTraffic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERSION = 1

Cell = str | int | float | None


@dataclass(frozen=True)
class ReportTable:
    """A table of plain values, with what it shows in a sentence. Every number's source is in a column."""

    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def folded(self) -> ReportTable:
        """What all rows share moved into the caption, and columns that hold nothing left out."""
        values = list(zip(*self.rows, strict=True))
        shared = [i for i, column in enumerate(values) if i and len(column) > 2 and len(set(column)) == 1]
        common = [f"{self.columns[i]} {text_of(values[i][0])}" for i in shared if values[i][0] is not None]
        kept = [
            i
            for i in range(len(self.columns))
            if i not in shared and any(row[i] is not None for row in self.rows)
        ]
        caption = f"{self.caption} All rows: {', '.join(common)}." if common else self.caption
        columns = tuple(self.columns[i] for i in kept)
        return ReportTable(
            self.title, caption, columns, tuple(tuple(row[i] for i in kept) for row in self.rows)
        )

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Of each column, whether it holds a number."""
        return tuple(
            any(isinstance(row[i], int | float) for row in self.rows) for i in range(len(self.columns))
        )


def text_of(value: Cell) -> str:
    """Thousands by commas, floats to four digits and whole from a thousand on, a dash for what is missing."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.4g}"


def human_bytes(count: float) -> str:
    """Decimal units, three digits, as in ``1.07 GB``."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


@dataclass(frozen=True)
class ProfileReport:
    """``environment`` names machine, GPU, driver and versions; ``notes`` what was turned off, and why."""

    name: str
    environment: Mapping[str, str]
    records: tuple[KernelTraffic, ...] = ()
    tables: tuple[ReportTable, ...] = ()
    notes: tuple[str, ...] = ()
    version: int = field(default=VERSION)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProfileReport:
        """The inverse of :meth:`to_dict`.

        Raises:
            UserError: if a newer lit_eff wrote it.
        """
        if values["version"] > VERSION:
            raise UserError(
                f"profile report of version {values['version']}; this lit_eff reads {VERSION}: update lit_eff"
            )
        tables = tuple(
            ReportTable(
                **{**table, "columns": tuple(table["columns"]), "rows": tuple(map(tuple, table["rows"]))}
            )
            for table in values["tables"]
        )
        records = tuple(KernelTraffic.from_dict(record) for record in values["records"])
        return cls(
            values["name"],
            dict(values["environment"]),
            records,
            tables,
            tuple(values["notes"]),
            values["version"],
        )

    def save(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1), encoding="utf-8")


def load_report(path: Path) -> ProfileReport:
    """Read a ``profile.json``, or that of a run folder.

    Raises:
        UserError: if there is none, or it is none.
    """
    file = path / "profile.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"no profile report at {file}; expected a run folder of lit-eff profile or its profile.json"
        )
    try:
        return ProfileReport.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no profile report: {type(error).__name__}: {error}") from error


@dataclass
class Findings:
    """What one part of a profile found; ``figures`` by name, as they are called on every page."""

    records: list[KernelTraffic] = field(default_factory=list)
    tables: list[ReportTable] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    timeline: Timeline | None = None
