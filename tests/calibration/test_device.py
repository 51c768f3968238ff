"""``--device``: every command that calibrates runs its model where it is told, and says where that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_eff.calibration import job
from lit_eff.cli import calibrate, recalibrate
from lit_eff.cli.calibration_run import calibration_device
from lit_eff.cli.main import main
from lit_eff.decoding.batched import generate_with_exits
from lit_eff.runtime.exit_rule import ExitRule
from tests.calibration.test_command import run_folder
from tests.export.bundles import readable_bundle

__all__ = ["run_folder"]  # the fixture


@pytest.mark.parametrize(
    ("name", "there", "expected", "told"),
    [
        ("auto", False, "cpu", "the CPU (no GPU found)"),
        ("cpu", False, "cpu", "the CPU (no GPU found)"),
        ("auto", True, "cuda", "the GPU (Some card)"),
        ("cuda", True, "cuda", "the GPU (Some card)"),
        ("cpu", True, "cpu", "the CPU"),
    ],
)
def test_the_device_is_chosen_and_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    there: bool,
    expected: str,
    told: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some card")
    assert calibration_device(name) == torch.device(expected)
    assert capsys.readouterr().err == f"calibrating on {told}\n"


def test_a_missing_gpu_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run_folder: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checkpoint = str(run_folder / "checkpoints" / "last.ckpt")
    bundle = readable_bundle(tmp_path / "bundle", ("onnx", "torch"))
    (tmp_path / "log.txt").write_text("a\n", encoding="utf-8")
    for words in (
        ["calibrate", "--ckpt_path", checkpoint],
        ["calibrate", "--update", str(bundle), "--log", str(tmp_path / "log.txt")],
        ["bench", "calibration", "--checkpoint", checkpoint],
    ):
        assert main([*words, "--device", "cuda"]) == 2
        told = capsys.readouterr().err.strip()
        assert len(told.split("\n")) == 1
        assert "--device is cuda, and PyTorch finds no NVIDIA GPU here; use --device cpu" in told


class ReachedError(Exception):
    """Carries the device that the model was on."""


def test_the_model_runs_on_the_device(
    monkeypatch: pytest.MonkeyPatch, run_folder: Path, tmp_path: Path
) -> None:
    def reach(loaded: Any, *_: Any, **__: Any) -> None:
        raise ReachedError(loaded.model.device.type)

    for command in (calibrate, recalibrate):
        monkeypatch.setattr(command, "calibration_device", lambda name: torch.device({"auto": "meta"}[name]))
    monkeypatch.setattr(job, "calibrate", reach)
    monkeypatch.setattr(recalibrate, "recalibrate", reach)
    checkpoint = str(run_folder / "checkpoints" / "last.ckpt")
    with pytest.raises(ReachedError, match="meta"):
        main(["calibrate", "--ckpt_path", checkpoint, "--output", str(tmp_path / "exits.json")])
    bundle = readable_bundle(tmp_path / "bundle", ("onnx", "torch"))
    (tmp_path / "log.txt").write_text("a\n", encoding="utf-8")
    with pytest.raises(ReachedError, match="meta"):
        main(["calibrate", "--update", str(bundle), "--log", str(tmp_path / "log.txt")])


@pytest.mark.gpu
def test_a_gpu_writes_what_a_cpu_writes() -> None:
    from tests.calibration.test_job import load, prompts

    model = load().model
    rules = [ExitRule(), *(ExitRule(thresholds=(limit,) * 3) for limit in (0.9, 0.5, 0.2))]
    rows = prompts(12, 0).tolist()
    here = generate_with_exits(model, rows, 6, rules, batch_size=5)
    there = generate_with_exits(model.to("cuda"), rows, 6, rules, batch_size=5)
    np.testing.assert_array_equal(here.tokens_KBN, there.tokens_KBN)
    np.testing.assert_array_equal(here.exits_KBN, there.exits_KBN)


def test_unknown_devices_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--ckpt_path", "c", "--device", "tpu"]) == 2
    assert "invalid choice: 'tpu' (choose from" in capsys.readouterr().err
