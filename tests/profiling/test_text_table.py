"""Tables in plain text."""

from __future__ import annotations

from lit_eff.profiling.report import ReportTable
from lit_eff.profiling.text_table import as_text


def test_text_lines_up_and_numbers_stand_to_the_right() -> None:
    table = ReportTable(
        "",
        "",
        ("kernel", "bytes", "note"),
        (("copy", 1_234_567, "x"), ("a_long_name", None, ""), ("", 8, "y")),
    )
    assert as_text(table).splitlines() == [
        "kernel           bytes  note",
        "copy         1,234,567  x",
        "a_long_name",
        "                     8  y",
    ]
