"""``lit-eff bench calibration``: its table, its file and its plot agree, and bad options are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_eff.bench import calibration
from lit_eff.bench.results import read_results
from lit_eff.cli.bench import main
from lit_eff.errors import UserError


def test_a_run_writes_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibration, "SEQUENCES", (100, 200))
    monkeypatch.setattr(calibration, "SHARED_GRID", calibration.GRID)
    monkeypatch.setattr(calibration, "UNSEEN", 200)
    output = tmp_path / "calibration.json"
    assert main(["calibration", "--trials", "20", "--output", str(output), "--json"]) == 0
    head, found = read_results(output)
    assert head["benchmark"] == "calibration"
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["rate"] for each in printed[1:]] == [each.rate for each in found]
    places = {each.key: each for each in found}
    saved = places["binary", "n 200", "binomial", calibration.SAVED]
    oracle = places["binary", "n 200", "oracle", calibration.SAVED]
    assert 0 < saved.rate < oracle.rate
    assert saved.ratio_to_best_peer == pytest.approx(saved.rate / oracle.rate)
    assert places["thresholds", "n 200", calibration.VECTORS, calibration.VIOLATIONS].rate <= 0.2
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_too_few_trials_are_refused() -> None:
    with pytest.raises(UserError, match="--trials 3"):
        main(["calibration", "--trials", "3"])
