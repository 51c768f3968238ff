"""The attention speed table: published ratios as printed, measured ones from a result file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_eff.bench.gpt2_speed_table import (
    PUBLISHED,
    published_ratio,
    read_measured,
    speed_figure,
    speed_table,
)
from lit_eff.errors import UserError

RESULTS = Path(__file__).parents[2] / "benchmarks/results/gpt2_training_h100.jsonl"


def test_published_ratios_are_those_printed() -> None:
    """Dao et al. 2022, table 2: 1.0x, 2.0x, 3.5x of GPT-2 small; 1.0x, 1.8x, 3.0x of medium."""
    assert [round(published_ratio(row), 1) for row in PUBLISHED] == [1.0, 2.0, 3.5, 1.0, 1.8, 3.0]


def test_the_committed_results_make_the_table() -> None:
    measured = read_measured(RESULTS)
    table = speed_table(measured)
    sources = [row[-1] for row in table.rows]
    assert sources.count("published") == 6
    assert sources.count("measured") == len(measured) == 8
    assert [row[0] for row in table.rows] == ["small"] * 7 + ["medium"] * 7
    assert len(speed_figure(measured).axes) == 2


def test_what_is_no_result_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="write one with lit-eff bench gpt2_training"):
        read_measured(tmp_path / "none.jsonl")
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{}")
    with pytest.raises(UserError, match="not a result file"):
        read_measured(broken)
    broken.write_text(json.dumps({"implementation": "sdpa", "ratios": {}}))
    with pytest.raises(UserError, match="no job 'eager'"):
        read_measured(broken)
