"""What the terminal shows of a profile."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from lit_eff.cli.profile_report import show_counts
from tests.profiling.sample_run import record


def test_counts_beside_formulas_with_what_differs_in_shape() -> None:
    """Shapes may hold lists: the lengths of packed sequences."""
    packed = [replace(record(), shape={"lengths": lengths, "heads": 2}) for lengths in ([3, 4], [5])]
    output = io.StringIO()
    show_counts(packed, Console(file=output, width=120))  # type: ignore[arg-type]
    lines = output.getvalue().splitlines()
    assert any("lengths [3, 4]" in line and line.count("1,000") == 2 for line in lines)
    assert "heads 2" in lines
    assert "equal to the byte" in lines[-1]
