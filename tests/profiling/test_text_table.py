"""Tables in plain text."""

from __future__ import annotations

from lit_eff.profiling.report import ReportTable, human_bytes
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
        "a_long_name          -",
        "                     8  y",
    ]


def test_human_bytes() -> None:
    sizes = (12, 1500, 134_217_728, 999_600_000, 10_979_000_000)
    assert [human_bytes(size) for size in sizes] == ["12 B", "1.5 kB", "134 MB", "1 GB", "11 GB"]
