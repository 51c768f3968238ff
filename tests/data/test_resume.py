"""A stopped and resumed run reads exactly what an uninterrupted one does, through a real Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy

from lit_eff.data import LanguageModelData, TokenizerConfig
from lit_eff.errors import UserError
from tests.data.helpers import SPLITS, write_jsonl

STEPS = 12
# With a bound on epochs, trainer.estimated_stepping_batches opens the loader from configure_optimizers.
OPENS_EARLY: dict[str, Any] = {"max_epochs": 1000}


class Recorder(LightningModule):
    """Remembers the batches it was given; its weights depend on every one of them and on their order."""

    def __init__(self, *, touch_steps: bool = False, interrupt_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(300, dtype=torch.float64))
        self.touch_steps = touch_steps
        self.interrupt_at = interrupt_at
        self.seen: list[list[int]] = []
        self.validated: list[list[int]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if len(self.seen) == self.interrupt_at:
            raise KeyboardInterrupt
        self.seen.extend([row.tolist() for row in batch["tokens_BT"]])
        chosen = self.weight[batch["tokens_BT"]]
        return ((chosen - batch["targets_BT"].clamp_min(0) / 300) ** 2).mean()

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.validated.extend(row.tolist() for row in batch["tokens_BT"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.touch_steps:
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD([self.weight], lr=5.0, momentum=0.5)


class SaveAt(Callback):
    """A checkpoint at the end of the training batch that completes ``step``, or where a run breaks off."""

    def __init__(self, path: Path, step: int | None = None) -> None:
        self.path = path
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)

    def on_exception(self, trainer: Trainer, *args: Any) -> None:
        trainer.save_checkpoint(self.path)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    return write_jsonl(folder / "a.jsonl", range(60))


def data(source: Path, **changes: Any) -> LanguageModelData:
    values: dict[str, Any] = {"context": 16, "batch_size": 2, "seed": 3, "splits": SPLITS} | changes
    return LanguageModelData(
        str(source), TokenizerConfig(vocab_size=300), cache_dir=str(source.parent / "cache"), **values
    )


def fit(
    module: Recorder,
    datamodule: LanguageModelData,
    *callbacks: Callback,
    resume: Path | None = None,
    max_steps: int = STEPS,
    **options: Any,
) -> Recorder:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }
    trainer = Trainer(max_steps=max_steps, callbacks=list(callbacks), **quiet | options)
    trainer.fit(module, datamodule, ckpt_path=resume)
    return module


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("touch_steps", [False, True])
@pytest.mark.parametrize(
    "validate", [{}, {"val_check_interval": 0.25}, {"val_check_interval": 4, "check_val_every_n_epoch": None}]
)
def test_resuming_equals_never_stopping(
    tmp_path: Path, source: Path, accumulate: int, touch_steps: bool, validate: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": accumulate}
    if touch_steps:
        options |= OPENS_EARLY
    if validate:
        options |= {"limit_val_batches": 1.0, "num_sanity_val_steps": 2} | validate
    checkpoint = tmp_path / "at5.ckpt"
    whole = fit(Recorder(touch_steps=touch_steps), data(source), SaveAt(checkpoint, 5), **options)
    rest = fit(Recorder(touch_steps=touch_steps), data(source), resume=checkpoint, **options)
    assert len(whole.seen) == STEPS * accumulate * 2
    assert rest.seen == whole.seen[5 * accumulate * 2 :]
    assert torch.equal(rest.weight, whole.weight)
    assert bool(whole.validated) == bool(validate)


class RestoresLate(SingleDeviceStrategy):
    """Restores checkpoints after the loaders were opened, as sharded strategies do."""

    restore_checkpoint_after_setup = True  # type: ignore[assignment]


def test_a_loader_opened_before_the_checkpoint_is_restored(tmp_path: Path, source: Path) -> None:
    whole = fit(Recorder(), data(source), SaveAt(tmp_path / "at5.ckpt", 5))
    late = RestoresLate(torch.device("cpu"))
    rest = fit(
        Recorder(touch_steps=True), data(source), resume=tmp_path / "at5.ckpt", strategy=late, **OPENS_EARLY
    )
    assert rest.seen == whole.seen[10:]


def test_a_finished_run_can_be_prolonged(tmp_path: Path, source: Path) -> None:
    whole = fit(Recorder(), data(source))
    short = fit(Recorder(), data(source), SaveAt(tmp_path / "end.ckpt", 5), max_steps=5)
    rest = fit(Recorder(), data(source), resume=tmp_path / "end.ckpt")
    assert short.seen + rest.seen == whole.seen
    assert torch.equal(rest.weight, whole.weight)


def test_interrupted_within_a_batch(tmp_path: Path, source: Path) -> None:
    whole = fit(Recorder(), data(source))
    broken = Recorder(interrupt_at=8)  # the fifth batch was handed out, but not trained on
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(broken, data(source), SaveAt(tmp_path / "broken.ckpt"))
    rest = fit(Recorder(), data(source), resume=tmp_path / "broken.ckpt")
    assert broken.seen + rest.seen == whole.seen
    assert torch.equal(rest.weight, whole.weight)


def test_epochs_go_on_in_the_stream(tmp_path: Path, source: Path) -> None:
    whole = fit(Recorder(), data(source))
    epochs = fit(Recorder(), data(source), SaveAt(tmp_path / "at6.ckpt", 6), limit_train_batches=4)
    assert epochs.seen == whole.seen
    rest = fit(Recorder(), data(source), resume=tmp_path / "at6.ckpt", limit_train_batches=4)
    assert rest.seen == whole.seen[12:]


def test_another_batch_size_goes_on_at_the_same_sample(tmp_path: Path, source: Path) -> None:
    whole = fit(Recorder(), data(source), SaveAt(tmp_path / "at5.ckpt", 5))
    rest = fit(Recorder(), data(source, batch_size=1), resume=tmp_path / "at5.ckpt", max_steps=9)
    assert rest.seen == whole.seen[10:14]


def test_a_new_run_starts_anew(tmp_path: Path, source: Path) -> None:
    datamodule = data(source)
    whole = fit(Recorder(), datamodule, SaveAt(tmp_path / "at5.ckpt", 5)).seen
    assert fit(Recorder(), datamodule).seen == whole
    other = data(source, batch_size=1)
    fit(Recorder(), other, resume=tmp_path / "at5.ckpt", max_steps=9)
    assert fit(Recorder(), other).seen == whole[:STEPS]


def test_without_max_steps_an_epoch_is_a_pass(source: Path) -> None:
    datamodule = data(source)
    module = fit(Recorder(), datamodule, max_steps=-1, max_epochs=2)
    batches = len(datamodule.train_dataloader())
    assert len(module.seen) == 2 * batches * 2
    assert batches * 2 - len(datamodule.examples("train", shuffle=True)) in (0, 1)


def test_overfitting_a_few_batches_is_refused(source: Path) -> None:
    with pytest.raises(UserError, match=r"overfit_batches is not supported.*data.max_documents"):
        fit(Recorder(), data(source), overfit_batches=2)


def test_another_corpus_is_said(tmp_path: Path, source: Path) -> None:
    fit(Recorder(), data(source), SaveAt(tmp_path / "at5.ckpt", 5))
    with pytest.warns(
        UserWarning, match="seed and context differ from the checkpoint's: training goes on at sample 10"
    ):
        fit(Recorder(), data(source, seed=4, context=8), resume=tmp_path / "at5.ckpt")
