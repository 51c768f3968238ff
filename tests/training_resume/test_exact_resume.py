"""Stopped at step N and resumed equals uninterrupted, bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_eff.models.config import ExitConfig
from lit_eff.training import MuonAdamW
from lit_eff.training.callbacks import SaveOnInterrupt, TrainingInterrupted
from tests.training.callbacks.tiny import make_config, make_module, same
from tests.training_resume.runs import ACCUMULATE, MAX_STEPS, Record, demanding_module, interrupted_at, run

COMPARED = ("state_dict", "optimizer_states", "lr_schedulers", "ema_state_dict", "LanguageModelData")


class SignalAt(Callback):
    """Sends this process a signal at a training batch, or at a batch of the n-th validation."""

    def __init__(self, *, batch: int | None = None, validation: int | None = None) -> None:
        self.batch = batch
        self.validation = validation

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.batch:
            signal.raise_signal(signal.SIGINT)

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if self.validation is not None:
            self.validation -= 1
            if self.validation == 0:
                signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, text: Path) -> tuple[dict[str, Any], Record]:
    return run(tmp_path_factory.mktemp("whole"), text)


@pytest.mark.parametrize(
    ("where", "steps_done"),
    [
        ({"batch": 7}, 3),  # in the middle of an accumulation: stops at its end
        ({"batch": 26}, 9),  # in the second pass over the data
        ({"validation": 1}, 2),  # in a validation inside an accumulation: stops at its end
        ({"validation": 5}, 4),  # in a validation at a step's border: stops there
    ],
)
def test_interrupted_and_resumed(
    tmp_path: Path,
    text: Path,
    whole: tuple[dict[str, Any], Record],
    where: dict[str, int],
    steps_done: int,
) -> None:
    with pytest.raises(TrainingInterrupted) as stopped:
        run(tmp_path / "first", text, SignalAt(**where), SaveOnInterrupt())
    assert stopped.value.code == 130
    path = interrupted_at(tmp_path)
    assert torch.load(path, weights_only=True)["global_step"] == steps_done

    final, record = run(tmp_path / "second", text, SaveOnInterrupt(), ckpt_path=path)
    expected, uninterrupted = whole
    assert final["global_step"] == MAX_STEPS
    assert same(record.tokens, uninterrupted.tokens[steps_done * ACCUMULATE :]) == []
    assert record.losses == uninterrupted.losses[steps_done * ACCUMULATE :]
    for part in COMPARED:
        assert same(final[part], expected[part], part) == []


def test_an_exit_classifier_resumes_too(tmp_path: Path, text: Path) -> None:
    def fit(name: str, *callbacks: Callback, **settings: Any) -> tuple[dict[str, Any], Record]:
        classified = make_config(exits=ExitConfig((1, 2), "norm", classifier=True), init_std=0.3)
        module = make_module(classified, exit_classifier="agreement")
        return run(tmp_path / name, text, *callbacks, SaveOnInterrupt(), module=module, **settings)

    whole, uninterrupted = fit("whole")
    with pytest.raises(TrainingInterrupted):
        fit("first", SignalAt(batch=7))
    final, record = fit("second", ckpt_path=interrupted_at(tmp_path / "first"))
    assert record.losses == uninterrupted.losses[3 * ACCUMULATE :]
    assert len(set(uninterrupted.losses)) > MAX_STEPS
    for part in COMPARED:
        assert same(final[part], whole[part], part) == []


def test_the_run_would_show_a_lost_state(
    text: Path, tmp_path: Path, whole: tuple[dict[str, Any], Record]
) -> None:
    """The comparison can fail: another seed, or a resume one step off, is not the same run."""
    expected, uninterrupted = whole
    other, _ = run(tmp_path, text, module=demanding_module(seed=1))
    for part in COMPARED[:2]:
        assert same(other[part], expected[part], part) != []
    assert len({tokens.numpy().tobytes() for tokens in uninterrupted.tokens}) == MAX_STEPS * ACCUMULATE


def test_resume_from_a_periodic_checkpoint_with_muon(tmp_path: Path, text: Path) -> None:
    """Not only our own: ModelCheckpoint's files, written between a step and its validation, resume too."""

    def module() -> Any:
        return demanding_module(optimizer=lambda params: MuonAdamW(params, lr=1e-2))

    every = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=4, save_top_k=-1, filename="{step}")
    expected, uninterrupted = run(tmp_path / "whole", text, every, module=module())
    final, record = run(
        tmp_path / "resumed", text, ckpt_path=tmp_path / "kept" / "step=8.ckpt", module=module()
    )
    assert record.losses == uninterrupted.losses[8 * ACCUMULATE :]
    for part in COMPARED:
        assert same(final[part], expected[part], part) == []


def test_mid_pass_without_accumulation(tmp_path: Path, text: Path) -> None:
    settings = {"accumulate_grad_batches": 1, "val_check_interval": 5}
    expected, uninterrupted = run(tmp_path / "whole", text, **settings)
    with pytest.raises(TrainingInterrupted):
        run(tmp_path / "first", text, SignalAt(batch=6), SaveOnInterrupt(), **settings)
    final, record = run(tmp_path / "second", text, ckpt_path=interrupted_at(tmp_path), **settings)
    assert record.losses == uninterrupted.losses[7:]
    for part in COMPARED:
        assert same(final[part], expected[part], part) == []
