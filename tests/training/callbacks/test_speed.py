"""Tokens per second, and utilisation with the exits counted."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_eff.models.config import ExitConfig
from lit_eff.profiling.devices import get_device
from lit_eff.training import Curriculum, ExitLoss, LitLanguageModel
from lit_eff.training.callbacks import Throughput
from lit_eff.training.callbacks import peak as peak_module
from lit_eff.training.callbacks.peak import peak_flops
from lit_eff.training.callbacks.throughput import training_flops
from tests.training.callbacks.tiny import BATCH, CONTEXT, make_config, make_data, make_module, make_trainer


class Slow(Callback):
    """Takes a known time over each batch, and over each validation."""

    def __init__(self, batch: float, validation: float) -> None:
        self.batch = batch
        self.validation = validation

    def on_train_batch_start(self, *args: Any) -> None:
        time.sleep(self.batch)

    def on_validation_epoch_end(self, *args: Any) -> None:
        time.sleep(self.validation)


def _scalars(trainer: Trainer, tag: str) -> list[float]:
    events = EventAccumulator(str(trainer.log_dir), {"scalars": 0}).Reload()
    return [event.value for event in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []


def test_tokens_per_second_leaves_validation_out(tmp_path: Path, text: Path) -> None:
    throughput = Throughput()
    trainer = make_trainer(
        *(tmp_path, Slow(0.05, 1.0), throughput), max_steps=10, val_check_interval=3, log_every_n_steps=4
    )
    trainer.fit(make_module(), datamodule=make_data(text))
    fastest = BATCH * CONTEXT / 0.05
    logged = _scalars(trainer, "train/tokens_per_second")
    assert len(logged) == 2
    assert all(0.2 * fastest < value < fastest for value in logged)  # with a validation in, under 0.15
    assert throughput.total_tokens == 8 * BATCH * CONTEXT  # two batches warm up
    assert 0.4 < throughput.total_seconds < 2.0


def test_utilisation_is_flops_over_peak(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = peak_module.Peak(1e9, "a test's")
    monkeypatch.setattr("lit_eff.training.callbacks.throughput.peak_flops", lambda *args: known)
    trainer = make_trainer(tmp_path, Throughput(), max_steps=6)
    module = make_module()
    trainer.fit(module, datamodule=make_data(text))
    per_token = 3 * module.model.flops_per_token(CONTEXT)
    pairs = list(
        zip(_scalars(trainer, "train/mfu"), _scalars(trainer, "train/tokens_per_second"), strict=True)
    )
    assert len(pairs) == 4
    for utilisation, speed in pairs:
        assert utilisation == pytest.approx(speed * per_token / 1e9, rel=1e-4)


def test_no_utilisation_without_a_peak(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    trainer = make_trainer(tmp_path, Throughput(), max_steps=4)
    trainer.fit(make_module(), datamodule=make_data(text))
    assert caplog.text.count("train/mfu: unavailable, the table of peaks has no CPU") == 1
    assert _scalars(trainer, "train/mfu") == []


def _attached(module: LitLanguageModel, tmp_path: Path) -> LitLanguageModel:
    module.configure_model()
    module.trainer = make_trainer(tmp_path, max_steps=100)
    return module


def test_flops_follow_the_curriculum(tmp_path: Path) -> None:
    """A step that trains one head less costs that head less, three times over."""
    loss = ExitLoss(curriculum=Curriculum("rotational", every=2))
    module = _attached(make_module(exit_loss=loss), tmp_path)
    head = 2 * module.config.model_dim * module.config.vocab_size
    layers = module.model.flops_per_token(CONTEXT, [2]) - head
    assert module.exits_computed(0) == (0, 2)
    assert module.exits_computed(1) == (1, 2)
    assert training_flops(module, CONTEXT, 0) == pytest.approx(3 * (layers + 2 * head))
    everything = _attached(make_module(), tmp_path)
    assert training_flops(everything, CONTEXT, 0) == pytest.approx(3 * (layers + 3 * head))


def test_a_frozen_backbone_runs_forward_alone(tmp_path: Path) -> None:
    config = make_config(exits=ExitConfig((1, 2), "linear"))
    module = _attached(make_module(config, exit_loss=ExitLoss("only_exits")), tmp_path)
    head = 2 * config.model_dim * config.vocab_size
    two_layers = module.model.flops_per_token(CONTEXT, [1]) - head
    assert training_flops(module, CONTEXT, 0) == pytest.approx(two_layers + 3 * 2 * head)


def test_peaks_come_from_the_device_table(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    h100 = get_device("H100 SXM")
    assert peak_flops(cuda, "bf16-mixed").flops == h100.peak("bfloat16")
    assert peak_flops(cuda, "32-true").flops == h100.peak("float32")
    assert peak_flops(cuda, "64-true").flops is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Unheard-of 9000")
    missing = peak_flops(cuda, "bf16-mixed")
    assert missing.flops is None
    assert "Unheard-of 9000" in missing.reason
