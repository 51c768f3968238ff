"""Tokens per second and model-FLOP utilisation, with the work of the exits counted."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_eff.errors import UserError
from lit_eff.training.base import LitEarlyExit
from lit_eff.training.callbacks.peak import peak_flops


class Throughput(Callback):
    """Logs ``train/tokens_per_second`` and, where the device's peak is known, ``train/mfu``.

    Tokens are positions computed, padding included, over all ranks. Time runs from the end of one batch to
    the end of another, data loading included; validation is left out, and so are the first batches, which
    compile and warm up. Model-FLOP utilisation (PaLM, Chowdhery et al. 2022, appendix B) is the operations
    that the step's model and exits need, no recomputation, over what the devices could do:
    a forward pass, and twice as much backward (for the heads alone when the backbone is frozen).

    Args:
        warmup: batches left out at the start of a run.
    """

    def __init__(self, warmup: int = 2) -> None:
        if warmup < 1:
            raise UserError(f"throughput.warmup is {warmup}; expected at least 1 batch")
        self.warmup = warmup
        self._peak: float | None = None
        self._batches = 0
        self._tokens = 0
        self._flops = 0.0
        self._step = 0  # the optimizer step that the current batch belongs to
        self._since = 0.0  # start of the current window
        self._paused = 0.0  # start of the current validation
        self.total_tokens = 0  # over all ranks, in this run
        self.total_seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        peak = peak_flops(pl_module.device, str(trainer.precision))
        self._peak = peak.flops
        if peak.flops is None:
            rank_zero_info(f"train/mfu: unavailable, {peak.reason}")
        self._batches = 0
        self.discard()
        self.total_tokens, self.total_seconds = 0, 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches += 1
        if self._batches <= self.warmup:
            self._restart()
            return
        assert isinstance(pl_module, LitEarlyExit)
        tokens = batch["tokens_BT"].numel() * trainer.world_size
        self._tokens += tokens
        self._flops += tokens * training_flops(pl_module, batch["tokens_BT"].shape[1], self._step)
        if self._batches % trainer.log_every_n_steps:  # type: ignore[attr-defined]  # set by a connector
            return
        tokens, flops, seconds = self._tokens, self._flops, self._restart()
        pl_module.log("train/tokens_per_second", tokens / seconds)
        if self._peak is not None:
            pl_module.log("train/mfu", flops / seconds / (self._peak * trainer.world_size))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def discard(self) -> None:
        """Leave the batches since the last figure out: something slowed them (a trace, say)."""
        self._tokens, self._flops, self._since = 0, 0.0, time.perf_counter()

    def _restart(self) -> float:
        """Close the window and open the next; returns the seconds it took."""
        now = time.perf_counter()
        seconds = now - self._since
        self.total_tokens += self._tokens
        self.total_seconds += seconds if self._tokens else 0.0
        self._since, self._tokens, self._flops = now, 0, 0.0
        return seconds

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since += time.perf_counter() - self._paused


def training_flops(module: LitEarlyExit, context: int, step: int) -> float:
    """Operations a token of one training step: the layers and heads that it runs, forward and backward."""
    count, exits = module.model.flops_per_token, module.exits_computed(step)
    forward = count(context, exits)
    if module.exit_classifier is not None:  # all that is trained is one vector
        return forward
    if not module.exit_loss.frozen_backbone:
        return 3 * forward
    deepest, last = exits[-1], len(module.config.exit_layers) - 1
    shallow_heads = forward - count(context, [deepest])
    deepest_head = count(context, [deepest, last]) - count(context, [last])
    return forward + 2 * (shallow_heads + deepest_head)
