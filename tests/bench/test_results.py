"""Ratios, JSON lines, comparison, table and plot."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lit_eff.bench.compare import changes
from lit_eff.bench.measure import Sample
from lit_eff.bench.plot import plot
from lit_eff.bench.report import print_report
from lit_eff.bench.results import Measurement, header, read_results, timed, with_ratios, write_results
from lit_eff.errors import UserError


def measured(
    contender: str, rate: float | None, *, cell: str = "dim 64", quantity: str = "forward"
) -> Measurement:
    ours = contender.startswith("ours")
    return Measurement(
        "training", cell, contender, quantity, "TFLOP/s", ours, rate, 1.0, noise=0.01, rounds=5
    )


RESULTS = with_ratios(
    [
        measured("ours", 500.0),
        measured("ours portable", 300.0),
        measured("cuDNN", 400.0),
        measured("flash", 250.0),
        replace(measured("FA4", None), unavailable="not [installed]"),
        measured("ours", 100.0, quantity="backward"),
        measured("cuDNN", 200.0, quantity="backward"),
        replace(measured("flash", None, quantity="backward"), wrong=True, unavailable="wrong: off by 30%"),
        measured("ours", 10.0, cell="dim 128"),
    ]
)
HEAD = header("attention", ["--rounds", "5"], {"matmul_tflops": 700.0, "read_gb_per_second": 3000.0})


def test_rate_of_samples_of_several_calls() -> None:
    sample = Sample((9.0, 10.0, 14.0))
    found = timed(measured("ours", None), sample, 3e12 / 1e9, calls=5)
    assert (found.milliseconds, found.rounds, found.noise) == (2.0, 3, sample.noise)
    assert found.rate == 1500.0  # 3 TFLOP in 2 ms
    assert found.contender == "ours"


def test_ratios_are_to_rivals_of_the_same_place() -> None:
    ours, portable, cudnn, *_ = RESULTS
    assert (ours.best_peer, ours.ratio_to_best_peer) == ("cuDNN", 1.25)
    assert ours.ratios == {"ours portable": 500 / 300, "cuDNN": 1.25, "flash": 2.0}
    assert portable.ratio_to_best_peer == 0.75
    assert cudnn.best_peer == "flash"  # a peer's best peer is another one
    assert RESULTS[5].ratio_to_best_peer == 0.5
    assert (RESULTS[8].best_peer, RESULTS[8].ratio_to_best_peer) == (None, None)


def test_lines_go_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    write_results(path, HEAD, RESULTS)
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + len(RESULTS)
    head = json.loads(lines[0])
    assert head["command"] == "lit-eff bench attention --rounds 5"
    assert {"device", "driver", "torch", "triton", "cudnn", "ceilings"} <= set(head)
    assert read_results(path) == (head, RESULTS)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "{not json", '{"kind": "header", "format": 0}\n', "3\n"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"other\.json is not a result file"):
        read_results(path)
    with pytest.raises(UserError, match="cannot read"):
        read_results(tmp_path / "absent.jsonl")


def test_changes_beyond_noise_are_named() -> None:
    before = [measured("ours", 100.0), measured("cuDNN", 100.0), measured("ours", 100.0, cell="dim 128")]
    after = [measured("ours", 90.0), measured("cuDNN", 90.0), measured("ours", 96.0, cell="dim 128")]
    found = changes(before, after)
    assert [each.after.contender for each in found] == [
        "ours",
        "cuDNN",
    ]  # 4% is within 3% and the noise of both
    assert [each.is_regression for each in found] == [True, False]
    assert "training, dim 64, ours forward: 100 -> 90 TFLOP/s (-10.0%" in str(found[0])
    gone = changes(before, [replace(measured("ours", None), unavailable="out of resources")])
    assert gone[0].is_regression
    assert "out of resources" in str(gone[0])
    faster = changes(before, [measured("ours", 120.0)])
    assert [each.is_regression for each in faster] == [False]
    assert changes(before, [measured("ours", 1.0, cell="a new one")]) == []


def test_report_shows_rates_reasons_and_regressions() -> None:
    stream = io.StringIO()
    changed = changes([measured("ours", 600.0)], RESULTS)
    print_report(Console(file=stream, width=120), HEAD, RESULTS, changed)
    text = stream.getvalue()
    assert "FA4 unavailable: not [installed] (dim 64)" in text
    for part in ("1.25", "0.75", "500", "wrong", "matmul_tflops 700", "regressions: 1", "600 -> 500"):
        assert part in text


def test_plot_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "results.png"
    plot(path, HEAD, RESULTS)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000
