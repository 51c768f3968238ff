"""Runs with everything on that could spoil an exact resume, stopped or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_eff.training import Curriculum, ExitLoss, LayerDropout, LitLanguageModel, Schedule
from lit_eff.training.callbacks import EMA, SaveOnInterrupt
from tests.training.callbacks.tiny import make_config, make_data, make_module, make_trainer

MAX_STEPS = 12
ACCUMULATE = 3  # validation, every 4 batches, falls inside accumulations


class Record(Callback):
    """The tokens of every training batch and its loss."""

    def __init__(self) -> None:
        self.tokens: list[torch.Tensor] = []
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.tokens.append(batch["tokens_BT"].clone())
        self.losses.append(float(outputs["loss"]))


def demanding_module(**settings: Any) -> LitLanguageModel:
    """Dropout, growing layer dropout, a rotating curriculum, distillation, a schedule that moves."""
    return make_module(
        make_config(dropout=0.1),
        exit_loss=ExitLoss(distillation=0.3, curriculum=Curriculum("rotational", every=2)),
        layer_dropout=LayerDropout(0.3, "exponential"),
        schedule=Schedule("wsd", warmup=0.2, decay=0.3),
        **settings,
    )


def run(
    folder: Path,
    text: Path,
    *callbacks: Callback,
    ckpt_path: Path | None = None,
    module: LitLanguageModel | None = None,
    **settings: Any,
) -> tuple[dict[str, Any], Record]:
    """Train (on) to the end; the final checkpoint and what was trained on.

    The corpus has about 100 rows, the run 144: it ends in the second pass.
    """
    record = Record()
    settings = {"accumulate_grad_batches": ACCUMULATE, "val_check_interval": 4, **settings}
    trainer = make_trainer(folder, EMA(0.9), record, *callbacks, max_steps=MAX_STEPS, **settings)
    torch.manual_seed(torch.seed() % 2**31)  # nothing may hang on the global state at the start
    trainer.fit(module or demanding_module(), datamodule=make_data(text), ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / "final.ckpt")
    return torch.load(folder / "final.ckpt", weights_only=True), record


def interrupted_at(folder: Path) -> Path:
    """The checkpoint of the (only) interrupted run under ``folder``."""
    (found,) = folder.rglob(SaveOnInterrupt.filename)
    return found
