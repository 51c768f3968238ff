"""Ctrl-C and SIGTERM from outside: a checkpoint, one clear line, the shell's exit code."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_eff.training.callbacks import SaveOnInterrupt, TrainingInterrupted
from tests.training.callbacks.tiny import make_data, make_module, make_trainer

STEPS = 400


class Pace(Callback):
    """Says when training is under way, and gives a signal time to arrive."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 2:
            self.marker.touch()
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def python_signals() -> Iterator[None]:
    """Python's own handlers, whatever ran before: Lightning may put the handler of an ended run back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def train(folder: Path, text: Path) -> None:
    sys.stderr = (folder / "stderr").open("w")
    trainer = make_trainer(
        *(folder, Pace(folder / "started"), SaveOnInterrupt(), ModelCheckpoint(folder / "kept")),
        max_steps=STEPS,
        limit_val_batches=0,
    )
    trainer.fit(make_module(), datamodule=make_data(text))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_from_outside(tmp_path: Path, text: Path, number: signal.Signals) -> None:
    process = multiprocessing.get_context("fork").Process(target=train, args=(tmp_path, text), daemon=True)
    process.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid or 0, number)
    process.join(60)
    assert process.exitcode == 128 + number
    saved = tmp_path / "kept" / "interrupted.ckpt"
    step = torch.load(saved, weights_only=True)["global_step"]
    assert 2 <= step < STEPS
    shown = (tmp_path / "stderr").read_text()
    assert f"Interrupted: stopped after step {step}; resume with --ckpt_path {saved}" in shown
    assert "Traceback" not in shown

    more = make_trainer(tmp_path, max_steps=step + 2, limit_val_batches=0)
    more.fit(make_module(), datamodule=make_data(text), ckpt_path=saved)
    assert more.global_step == step + 2


class Press(Callback):
    """Ctrl-C in a hook, so many times."""

    def __init__(self, hook: str, times: int) -> None:
        def press(*args: Any) -> None:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

        setattr(self, hook, press)


@pytest.mark.parametrize(
    ("hook", "times", "line"),
    [
        ("on_train_batch_start", 2, "stopped before the first step; nothing to save"),
        ("on_sanity_check_start", 1, "stopped before the first step; nothing to save"),
    ],
)
def test_stopping_at_once(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, hook: str, times: int, line: str
) -> None:
    shown = io.StringIO()
    before = signal.getsignal(signal.SIGINT)
    trainer = make_trainer(tmp_path, Press(hook, times), SaveOnInterrupt(), num_sanity_val_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", shown)
        with pytest.raises(TrainingInterrupted) as stopped:
            trainer.fit(make_module(), datamodule=make_data(text))
    assert stopped.value.code == 130
    assert line in shown.getvalue()
    assert not list(tmp_path.rglob("*.ckpt"))
    _check_released(before)


def _check_released(before: Any) -> None:
    """Ctrl-C is Python's again (Lightning may put our handler back after us: it passes the signal on)."""
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_an_undisturbed_run_gives_the_signals_back(tmp_path: Path, text: Path) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    callback = SaveOnInterrupt()
    make_trainer(tmp_path, callback, max_steps=2).fit(make_module(), datamodule=make_data(text))
    _check_released(before[signal.SIGINT])
    assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]


def test_it_runs_after_the_callbacks_listed_later(tmp_path: Path, text: Path) -> None:
    """What is saved has every callback's update of the step."""

    class Counts(Callback):
        count = 0

        def on_train_batch_end(self, *args: Any) -> None:
            self.count += 1

        def state_dict(self) -> dict[str, int]:
            return {"count": self.count}

        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 3:
                signal.raise_signal(signal.SIGINT)

    trainer = make_trainer(tmp_path, SaveOnInterrupt(), Counts(), max_steps=9)
    with pytest.raises(TrainingInterrupted):
        trainer.fit(make_module(), datamodule=make_data(text))
    (saved,) = tmp_path.rglob("interrupted.ckpt")
    states = torch.load(saved, weights_only=True)["callbacks"]
    assert [state for name, state in states.items() if name.endswith("Counts")] == [{"count": 4}]
