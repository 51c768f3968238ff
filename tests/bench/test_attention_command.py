"""`lit-eff bench attention` from its arguments to its exit code, on cells that need no GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lit_eff.bench import attention, measure
from lit_eff.bench.measure import interleaved
from lit_eff.bench.results import Measurement, read_results, with_ratios
from lit_eff.cli.bench import BENCHMARKS
from lit_eff.cli.main import main


class Clock:
    """Each function tells its own milliseconds."""

    def time(self, function: Callable[[], object]) -> float:
        return float(function())  # type: ignore[arg-type]


@dataclass(frozen=True)
class FakeCell:
    section: str
    label: str
    ours_takes: ClassVar[float] = 2.0

    def warm(self) -> None: ...

    def run(self, stopwatch: Any, rounds: int) -> list[Measurement]:
        samples = interleaved({"ours": lambda: self.ours_takes, "peer": lambda: 4.0}, rounds, stopwatch)
        blank = Measurement(self.section, self.label, "", "forward", "GB/s", rounds=rounds)
        return with_ratios(
            [
                replace(blank, contender=name, ours=name == "ours", rate=1000 / each.median, noise=each.noise)
                for name, each in samples.items()
            ]
        )


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [FakeCell("training", "dim 64, 1024"), FakeCell("decode", "1 x 8k"), FakeCell("verify", "1 x 8k")]
    monkeypatch.setattr(attention, "all_cells", lambda: cells)
    monkeypatch.setattr(attention, "_need_a_gpu", lambda: None)
    monkeypatch.setattr(measure, "CudaStopwatch", Clock)
    monkeypatch.setattr(measure, "ceilings", lambda stopwatch, rounds: {"read_gb_per_second": 3000.0})


@pytest.mark.usefixtures("fakes")
def test_measures_writes_and_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    run = ["bench", "attention", "--jobs", "1", "--rounds", "4"]
    assert main([*run, "--output", str(first)]) == 0
    head, measurements = read_results(first)
    assert head["command"].startswith("lit-eff bench attention --jobs 1")
    assert [each.rate for each in measurements] == [500.0, 250.0] * 3
    assert measurements[0].ratio_to_best_peer == 2.0
    assert first.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert main([*run, "--compare", str(first)]) == 0
    capsys.readouterr()
    monkeypatch.setattr(FakeCell, "ours_takes", 3.0)
    assert main([*run, "--only", "decode", "--output", str(second), "--compare", str(first)]) == 1
    out = capsys.readouterr().out
    assert "regressions: 1" in out
    assert "decode, 1 x 8k, ours forward: 500 -> 333 GB/s (-33.3%" in out
    assert {each.section for each in read_results(second)[1]} == {"decode"}


@pytest.mark.usefixtures("fakes")
def test_json_is_lines_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "attention", "--jobs", "1", "--rounds", "3", "--cells", "dim 64", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["kind"] for record in records] == ["header", "measurement", "measurement"]
    assert {record["cell"] for record in records[1:]} == {"dim 64, 1024"}


def test_the_grid_is_the_anchors() -> None:
    cells = attention.all_cells()
    assert len(cells) == 12 + 8
    labels = {(cell.section, cell.label) for cell in cells}
    assert {("training", "dim 128, 16384, causal"), ("verify", "64 x 4k, 8 tokens")} <= labels
    assert len(labels) == 20


def test_every_benchmark_has_a_main() -> None:
    import importlib

    for name in BENCHMARKS:
        assert callable(importlib.import_module(f"lit_eff.bench.{name}").main)


def test_unknown_benchmarks_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "atention"]) == 2
    assert "no benchmark 'atention'; did you mean 'attention'?" in capsys.readouterr().err
    assert main(["bench", "--help"]) == 0
    assert "attention" in capsys.readouterr().out


def test_checks_tell_what_failed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lit_eff.bench import attention_checks
    from lit_eff.bench.checks import Outcome

    seen = []

    def pretend(jobs: list[Any], processes: int, tell: Callable[[Outcome], None]) -> list[Outcome]:
        seen.append((len(jobs), processes))
        outcomes = [Outcome(job.name, ("dq is off by 1.0",) if job is jobs[0] else ()) for job in jobs]
        for each in outcomes:
            tell(each)
        return outcomes

    monkeypatch.setattr(attention_checks, "run_jobs", pretend)
    assert (
        main(["bench", "attention", "--check", "--jobs", "2", "--cells", "alone, causal", "budget, cache"])
        == 1
    )
    out = capsys.readouterr().out
    assert "FAILED alone, causal, 128x128, dim 64, bfloat16: dq is off by 1.0" in out
    assert "22 of 23 checks passed: 3 cases" in out
    assert seen == [(23, 2)]


def test_checks_run_in_the_interpreter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For real, in processes of their own."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = ["bench", "attention", "--check", "--jobs", "1", "--cells", "length, causal, 17x17"]
    assert main([*words, "cache, queries, 1 of"]) == 0
    assert "2 of 2 checks passed: 2 cases in Triton's interpreter, 0 budgets" in capsys.readouterr().out
