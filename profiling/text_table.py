"""A report's table set in plain text, for terminals, logs and the messages of failed tests."""

from __future__ import annotations

from lit_eff.profiling.report import ReportTable


def as_text(table: ReportTable) -> str:
    """Columns and rows, numbers to the right with thousands by commas; without title and caption."""
    lines = [list(table.columns), *([_cell(value) for value in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numeric = [any(isinstance(row[i], int | float) for row in table.rows) for i in range(len(widths))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def _cell(value: str | int | float | None) -> str:
    return f"{value:,}" if isinstance(value, int | float) else value or ""
