"""Reads what ncu prints (``--csv --page raw --nvtx``): a row a launch, with its stack of NVTX ranges.

The table is found among ncu's own messages; a cell may span lines, and numbers may carry separators of
thousands (ncu follows the locale; see :mod:`lit_eff.profiling.measured`, which asks for the C locale).
"""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass

# A range is quoted, with domain and six attributes: "<default domain>:NAME:none:none:none:none:none:none".
# A name may hold colons itself. Libraries (NCCL, CUB) have their own domains, which do not tell the caller.
RANGE = re.compile(r'"<default domain>:([^"]*?)(?::[^":]*){6}"')
RANGES_COLUMN = "Push/Pop_Range"
PREFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
SECONDS = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0}
BYTES_UNIT = re.compile(r"([KMGT]?)byte(?:/block)?")
TIME_UNIT = re.compile(r"([num]?)s(?:econd)?")


@dataclass(frozen=True)
class ProfiledLaunch:
    """One launch: ``metrics`` by ncu's names, in bytes, seconds and shares of 1; those it lacks are absent.

    ``ranges`` are the NVTX ranges of the default domain that were open on the launching thread, outermost
    first.
    """

    kernel: str
    ranges: tuple[str, ...]
    metrics: dict[str, float]


def parse_launches(text: str) -> list[ProfiledLaunch]:
    """The launches of ncu's output, in order; none where it holds no table."""
    start = re.search(r'^"ID",', text, re.MULTILINE)
    if start is None:
        return []
    rows = csv.reader(io.StringIO(text[start.start() :]))
    header = next(rows)
    units: list[str] = [""] * len(header)
    launches = []
    for row in rows:
        if len(row) != len(header) or row == header:  # a message of ncu's, or the table of another process
            continue
        if not row[header.index("ID")]:
            units = row
            continue
        launches.append(_launch(header, units, row))
    return launches


def _launch(header: list[str], units: list[str], row: list[str]) -> ProfiledLaunch:
    ranges: tuple[str, ...] = ()
    kernel = ""
    metrics = {}
    for name, unit, cell in zip(header, units, row, strict=True):
        if RANGES_COLUMN in name:
            ranges = tuple(RANGE.findall(cell))
        elif name == "Kernel Name":
            kernel = " ".join(cell.split())
        elif "__" in name and (value := _number(cell)) is not None:
            metrics[name] = value * _scale(unit)
    return ProfiledLaunch(kernel, ranges, metrics)


def _number(cell: str) -> float | None:
    try:
        value = float(cell.replace(",", ""))
    except ValueError:  # n/a, or a text
        return None
    return value if math.isfinite(value) else None


def _scale(unit: str) -> float:
    """What a value in ``unit`` is multiplied with to be in bytes, seconds or a share; 1 for counts."""
    unit = unit.strip()
    if unit == "%":
        return 0.01
    if found := BYTES_UNIT.fullmatch(unit):
        return PREFIXES[found[1]]
    if found := TIME_UNIT.fullmatch(unit):
        return SECONDS[found[1]]
    return 1.0
