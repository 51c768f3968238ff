"""``lit-eff bench calibration --checkpoint``: each re-split is a calibration of its own, generated once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lit_eff.bench import calibration_deployment as deployment
from lit_eff.bench.results import read_results
from lit_eff.calibration.config import CalibrationConfig, Risk
from lit_eff.calibration.job import calibrate
from lit_eff.cli.calibrate import CalibrationInputs
from lit_eff.cli.main import main
from lit_eff.decoding import batched
from lit_eff.errors import UserError
from lit_eff.models.config import ExitConfig
from tests.calibration import test_job as job
from tests.calibration.test_command import CALIBRATION, run_folder

__all__ = ["run_folder"]  # the fixture
CONFIG = CalibrationConfig(
    delta=0.2, epsilon=0.1, sequences=60, test_sequences=40, thresholds=(0.9, 0.6, 0.3), batch_size=30
)


def test_a_resplit_is_what_calibrating_on_its_prompts_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the calibrate job, on the same division: threshold, layers and risk of both parts."""
    config = replace(job.CONFIG, sequences=40, test_sequences=30)
    given = CalibrationInputs(job.load(), config, job.prompts(40, 0), job.prompts(30, 1), job.HASHES)
    batches: list[int] = []
    original = batched._continue

    def counted(model, batch, *rest):
        batches.append(len(batch))
        return original(model, batch, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(batched, "_continue", counted)
        found = deployment.measure(given, 5, seed=1)
    assert sum(batches) == 70, "every prompt once"
    every = np.concatenate([given.prompts, given.held_out])
    rng = np.random.default_rng(1)
    for each in found.resplits:
        order = rng.permutation(70)
        certificate = calibrate(
            given.loaded, every[order[:40]], every[order[40:]], config, split_hashes=job.HASHES
        )
        assert each.threshold == certificate.thresholds[0]
        assert each.predicted_layers == pytest.approx(certificate.calibration.layers_per_token)
        assert each.predicted_risk == pytest.approx(certificate.calibration.risk)
        assert each.layers == pytest.approx(certificate.test.layers_per_token)
        assert each.risk == pytest.approx(certificate.test.risk)
    assert found.full_layers == 4
    assert 0 < found.mean("risk") < config.delta
    assert 1 < found.mean("layers") < 4
    with pytest.raises(UserError, match="no early exits"):
        deployment.measure(replace(given, loaded=job.load(exits=ExitConfig())), 5, seed=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"procedure": "split_fixed_sequence", "learning_sequences": 5},
        {"thresholds": ((0.9, 0.5),)},
        {"also": (Risk("risk_consistency"),)},
        {"measure": ("entropy", "softmax_response")},
    ],
)
def test_what_resplits_do_not_divide_is_refused(changes: dict) -> None:
    config = replace(job.CONFIG, **changes)
    given = CalibrationInputs(job.load(), config, job.prompts(40, 0), job.prompts(30, 1), job.HASHES)
    with pytest.raises(UserError, match="re-splits are of one risk and measure"):
        deployment.measure(given, 5, seed=1)


def simulated(n: int, risks: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """0/1 losses of the full model and of thresholds with these risks; layers that each prompt runs."""
    rng = np.random.default_rng(0)
    losses = (rng.random((n, 1)) < np.array([0.0, *risks])).astype(float)
    return losses, np.array([12.0, 9.0, 7.0, 5.0]) + rng.normal(size=(n, 1))


def test_the_share_over_delta_counts_what_was_measured() -> None:
    losses, layers = simulated(100, (0.01, 0.1, 0.4))
    config = replace(CONFIG, sequences=60)
    resplits = list(deployment.resplit(losses, layers, config, 200, seed=0))
    assert {each.threshold for each in resplits} <= {None, 0.9, 0.6}
    found = deployment.Deployment(config, 12, tuple(resplits))
    over = [each.risk > 0.2 for each in resplits]
    assert found.over_delta == np.mean(over) <= 0.1
    tight = deployment.Deployment(replace(config, delta=0.05), 12, tuple(resplits))
    assert 0 < tight.over_delta < 1, "most select 0.6, of risk 0.1"
    # The parts are disjoint and together all prompts, so their weighted mean is the mean of the column.
    column = {None: 0, 0.9: 1, 0.6: 2}
    for each in resplits:
        together = (60 * each.predicted_layers + 40 * each.layers) / 100
        assert together == pytest.approx(layers[:, column[each.threshold]].mean())


def test_nothing_certified_is_the_full_model() -> None:
    losses, layers = simulated(100, (0.5, 0.6, 0.7))
    (one,) = deployment.resplit(losses, layers, CONFIG, 1, seed=0)
    assert (one.threshold, one.risk) == (None, 0.0)
    assert one.layers == pytest.approx(12, abs=0.5)


def test_the_command_prints_what_it_writes(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "calibration", "--checkpoint", str(run_folder / "checkpoints" / "last.ckpt")]
    words += ["calibration.delta=0.6", "--resplits", "4"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert f"{CALIBRATION['sequences']} prompts calibrate, 30 others measure" in printed
    assert "delta 0.6, epsilon 0.1, 3 layers" in printed
    assert "of 4 re-splits have a risk over delta" in printed
    output = tmp_path / "found.json"
    assert main([*words, "--json", "--output", str(output)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    head, found = read_results(output)
    assert [each.rate for each in found] == [line["rate"] for line in lines[1:]]
    assert len(found) == 4 * 5 + 1
    assert head["benchmark"] == "calibration"
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["calibration.delta=0.6"], "add --checkpoint"),
        (["--checkpoint", "missing.ckpt"], "missing.ckpt"),
        (["--checkpoint", "CKPT", "--resplits", "0"], "--resplits is 0"),
        (["--checkpoint", "CKPT", "calibration.delt=0.6"], "delt'"),
    ],
)
def test_bad_options_are_one_line(
    run_folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    checkpoint = str(run_folder / "checkpoints" / "last.ckpt")
    assert main(["bench", "calibration", *(word.replace("CKPT", checkpoint) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
