"""The moving average is the formula's, stands in for validation, and is saved beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_eff.errors import UserError
from lit_eff.models.checkpoint import load_checkpoint
from lit_eff.training.callbacks import EMA, RunArtifacts
from tests.training.callbacks.tiny import make_data, make_module, make_trainer, same

DECAY = 0.7


class Watch(Callback):
    """The weights after each optimizer step, and those that validation saw."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []
        self.validated: list[dict[str, torch.Tensor]] = []
        self.after: list[dict[str, torch.Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps.append(_copy(pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == len(self.steps):
            self.steps.append(_copy(pl_module))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated.append(_copy(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.after.append(_copy(pl_module))


def _copy(module: LightningModule) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def _averaged(steps: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The formula, in float64."""
    average = {name: weight.double() for name, weight in steps[0].items()}
    for n, weights in enumerate(steps[1:]):
        decay = min(DECAY, (1 + n) / (10 + n))
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
    return average


@pytest.mark.parametrize("validate", [True, False])
def test_average_in_validation_and_checkpoint(tmp_path: Path, text: Path, validate: bool) -> None:
    watch = Watch()
    trainer = make_trainer(
        tmp_path,
        EMA(DECAY, validate=validate),
        watch,
        RunArtifacts(),
        max_steps=30,
        accumulate_grad_batches=2,
        val_check_interval=60,
    )
    module = make_module()
    trainer.fit(module, datamodule=make_data(text))
    assert len(watch.steps) == 31  # once a step, not once a batch
    expected = _averaged(watch.steps)
    seen = expected if validate else watch.steps[-1]
    for name, weight in watch.validated[0].items():
        torch.testing.assert_close(weight.double(), seen[name].double(), rtol=1e-5, atol=1e-6)
    assert same(watch.after[0], watch.steps[-1]) == []  # training's own weights are back

    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert same(saved["state_dict"], module.state_dict()) == []
    assert saved["ema_state_dict"].keys() == saved["state_dict"].keys()
    loaded = load_checkpoint(tmp_path / "last.ckpt").model.state_dict()
    for name, weight in loaded.items():
        torch.testing.assert_close(weight.double(), expected[f"model.{name}"], rtol=1e-5, atol=1e-6)


def test_validate_reproduces_the_logged_metrics(tmp_path: Path, text: Path) -> None:
    trainer = make_trainer(tmp_path, EMA(DECAY))
    module = make_module()
    trainer.fit(module, datamodule=make_data(text))
    logged = dict(trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    (at_once,) = trainer.validate(module, make_data(text), verbose=False)
    assert all(float(logged[name]) == value for name, value in at_once.items())

    def validate(*callbacks: Callback) -> dict[str, Any]:
        other = make_trainer(tmp_path, *callbacks)
        (found,) = other.validate(make_module(seed=5), make_data(text), tmp_path / "last.ckpt", verbose=False)
        return dict(found)

    again = validate(EMA(DECAY))
    assert again
    assert all(float(logged[name]) == value for name, value in again.items())
    assert validate()["validation/loss"] != again["validation/loss"]  # the weights without the average


def test_resuming_a_run_that_had_no_average_starts_one_from_its_weights(tmp_path: Path, text: Path) -> None:
    first = make_trainer(tmp_path, max_steps=2)
    first.fit(make_module(), datamodule=make_data(text))
    first.save_checkpoint(tmp_path / "plain.ckpt")
    watch = Watch()
    watch.steps = [{}] * 2  # steps done
    trainer = make_trainer(tmp_path, EMA(DECAY), watch, max_steps=3)
    trainer.fit(make_module(seed=3), datamodule=make_data(text), ckpt_path=tmp_path / "plain.ckpt")
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    average = torch.load(tmp_path / "last.ckpt", weights_only=True)["ema_state_dict"]
    for name, weight in _averaged(watch.steps[2:]).items():
        torch.testing.assert_close(average[name].double(), weight, rtol=1e-5, atol=1e-6)


def test_a_decay_of_one_is_refused() -> None:
    with pytest.raises(UserError, match=r"ema\.decay is 1\.0"):
        EMA(1.0)
