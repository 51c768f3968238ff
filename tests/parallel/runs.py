"""One training run, on one process or sharded over two, with the same global batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from lit_eff.parallel.strategy import ShardedStrategy
from lit_eff.training import LitLanguageModel
from lit_eff.training.callbacks import EMA, SaveOnInterrupt
from tests.training.callbacks.tiny import BATCH, make_data, make_module, make_trainer

MAX_STEPS = 8
SAVED_AT = 4


class Losses(Callback):
    """The mean loss of every global batch, and the share of the parameters that this rank holds."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.share = 1.0
        self.ignored = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        whole = sum(parameter.numel() for parameter in pl_module.parameters())
        local = sum(
            (parameter.to_local() if isinstance(parameter, DTensor) else parameter).numel()
            for parameter in pl_module.parameters()
        )
        self.share = local / whole

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(trainer.strategy.reduce(outputs["loss"].clone(), reduce_op="mean")))
        self.ignored += int((batch["targets_BT"] == -100).sum())


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-2, fused=True)


def module(optimizer: Any = adamw) -> LitLanguageModel:
    return make_module(optimizer=optimizer)


def fit(
    folder: Path,
    text: Path,
    result: Path | None = None,
    *,
    ranks: int = 1,
    ckpt_path: Path | None = None,
    callbacks: tuple[Callback, ...] = (),
    lit: LitLanguageModel | None = None,
    **settings: Any,
) -> None:
    """Train, keeping checkpoints in ``folder/kept``; rank 0 writes what happened to ``result``."""
    losses = Losses()
    strategy: Any = ShardedStrategy() if ranks > 1 else "auto"
    kept = ModelCheckpoint(folder / "kept", every_n_train_steps=SAVED_AT, save_top_k=-1, filename="{step}")
    settings = {"gradient_clip_val": 0.5, "val_check_interval": 3, **settings}
    trainer = make_trainer(
        folder,
        *(EMA(0.9), losses, kept, SaveOnInterrupt(), *callbacks),
        max_steps=MAX_STEPS,
        strategy=strategy,
        devices=ranks,
        **settings,
    )
    lit = lit or module()
    trainer.fit(lit, datamodule=make_data(text, batch_size=BATCH // ranks), ckpt_path=ckpt_path)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(lit, options=options)
    if trainer.is_global_zero and result is not None:
        found = {
            "losses": losses.losses,
            "share": losses.share,
            "ignored": losses.ignored,
            "weights": {name: tensor.clone() for name, tensor in weights.items()},
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        }
        torch.save(found, result)


def read_result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "result.pt", weights_only=True)
    return found


def fit_sharded(folder: Path, text: Path, result: Path | None = None, **settings: Any) -> None:
    fit(folder, text, result, ranks=2, **settings)
