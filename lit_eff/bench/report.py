"""Measurements as tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from lit_eff.bench.compare import Change
from lit_eff.bench.results import Measurement


def unique(values: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(values))


def table(section: str, measurements: Sequence[Measurement]) -> Table:
    """A row a contender that ran, cell by cell: rate, ratio to the best peer and memory of each quantity."""
    mine = [each for each in measurements if each.section == section]
    quantities = unique([each.quantity for each in mine])
    found = {(each.cell, each.contender, each.quantity): each for each in mine}
    result = Table(title=f"{section}, {mine[0].unit}")
    for name in ("cell", "contender"):
        result.add_column(name, no_wrap=True)
    for quantity in quantities:
        for name in (quantity, "x best peer", "extra MB"):
            result.add_column(name, justify="right")
    for cell in unique([each.cell for each in mine]):
        first = True
        for name in unique([each.contender for each in mine if each.cell == cell]):
            rows = [found.get((cell, name, quantity)) for quantity in quantities]
            if not any(each and (each.rate or each.wrong) for each in rows):
                continue
            result.add_row(
                cell if first else "", name, *(text for each in rows for text in _texts(each, mine))
            )
            first = False
        result.add_section()
    return result


def _texts(each: Measurement | None, rivals: Sequence[Measurement]) -> tuple[str, str, str]:
    """Rate (bold: the best of its place), ratio to the best peer (green: ours is ahead), memory."""
    if each is None or each.rate is None:
        return "[red]wrong[/red]" if each is not None and each.wrong else "-", "", ""
    rate, ratio, memory = f"{each.rate:,.0f}", "", ""
    if each.rate == max(other.rate or 0.0 for other in rivals if other.place == each.place):
        rate = f"[bold]{rate}[/bold]"
    if each.ratio_to_best_peer is not None:
        ratio = f"{each.ratio_to_best_peer:.2f}"
        if each.ours:
            ratio = f"[{'green' if each.ratio_to_best_peer >= 1 else 'yellow'}]{ratio}[/]"
    if each.extra_bytes is not None:
        memory = f"{each.extra_bytes / 1e6:,.1f}"
    return rate, ratio, memory


def print_report(
    console: Console,
    head: dict[str, Any],
    measurements: Sequence[Measurement],
    changed: Sequence[Change] | None = None,
) -> None:
    """Tables, what could not run and why, the ceilings, and the comparison if there is one."""
    versions = ", ".join(
        f"{name} {head[name]}" for name in ("torch", "triton", "cudnn", "driver") if head[name]
    )
    console.print(f"{head['device']}, {versions}", soft_wrap=True)
    for section in unique([each.section for each in measurements]):
        console.print(table(section, measurements))
    missing: dict[str, list[str]] = {}
    for each in measurements:
        if each.unavailable:
            missing.setdefault(f"{each.contender} unavailable: {each.unavailable}", []).append(each.cell)
    for reason, cells in missing.items():
        where = unique(cells)
        note = where[0] if len(where) == 1 else f"{len(where)} cells"
        console.print(f"{reason} ({note})", soft_wrap=True, markup=False)
    figures = ", ".join(f"{name} {value:,.0f}" for name, value in head["ceilings"].items())
    console.print(f"ceilings, measured in this run: {figures}", soft_wrap=True)
    if changed is None:
        return
    for title, chosen in (
        ("regressions", [each for each in changed if each.is_regression]),
        ("other changes beyond noise", [each for each in changed if not each.is_regression]),
    ):
        console.print(f"{title}: {len(chosen) or 'none'}")
        for change in chosen:
            console.print(f"  {change}", soft_wrap=True, markup=False)
