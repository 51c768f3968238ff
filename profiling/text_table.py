"""A report's table set in plain text, for terminals, logs and the messages of failed tests."""

from __future__ import annotations

from lit_eff.profiling.report import ReportTable, text_of


def as_text(table: ReportTable) -> str:
    """Columns and rows, numbers to the right; without title and caption."""
    lines = [list(table.columns), *([text_of(value) for value in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, table.numeric, strict=True)
        ).rstrip()
        for line in lines
    )
