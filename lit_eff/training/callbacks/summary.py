"""One line at the start of a run: what runs, and what does not."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_eff.models.transformer import Transformer
from lit_eff.training.callbacks.tensorboard import summary_writer


class RunSummary(Callback):
    """Says the model's size and exits, the attention form and why, the device, and the precision."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        line = summary_line(trainer, pl_module)
        rank_zero_info(line)
        writer = summary_writer(trainer)
        if writer is not None:
            writer.add_text("run/summary", line, trainer.global_step)


def summary_line(trainer: Trainer, pl_module: LightningModule) -> str:
    """The line of :class:`RunSummary`."""
    model = pl_module.model
    assert isinstance(model, Transformer)
    backend = model.attention_backend
    *early, last = model.config.exit_layers
    exits = (
        f"exits after {', '.join(map(str, early))} and {last} layers"
        if early
        else f"{last} layers, no early exit"
    )
    device = pl_module.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    ranks = f"{trainer.world_size} x {where}" if trainer.world_size > 1 else where
    return (
        f"{model.parameter_count() / 1e6:.2f}M parameters, {exits}; attention {backend.name} "
        f"({backend.reason}); {ranks}, {trainer.precision}"
    )
