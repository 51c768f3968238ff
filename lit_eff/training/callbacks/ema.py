"""An exponential moving average of the weights, kept beside them."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_eff.errors import UserError
from lit_eff.parallel.fsdp import reshard


class EMA(Callback):
    """Averages the weights in float32 after every optimizer step, and saves ``checkpoint["ema_state_dict"]``.

    average <- average + (1 - d) * (weights - average), with d = min(decay, (1 + n) / (10 + n)) after n
    updates, so that a short run's average forgets its beginning (the schedule of TensorFlow's
    ExponentialMovingAverage). ``ema_state_dict`` has the keys of ``state_dict`` (buffers are the current
    ones); later commands prefer it. Training always goes on from the raw weights, and resumes exactly.

    Args:
        decay: d in the long run, 0 to 1.
        validate: validate, test and predict with the average (and write samples with it).

    Raises:
        UserError: for a decay outside [0, 1).
    """

    def __init__(self, decay: float = 0.999, validate: bool = True) -> None:
        if not 0.0 <= decay < 1.0:
            raise UserError(f"ema.decay is {decay}; expected a number from 0 to below 1")
        self.decay = decay
        self.validate = validate
        self._average: dict[str, Tensor] | None = None  # float32, by parameter name
        self._raw: dict[str, Tensor] | None = None  # the weights, while the average stands in their place
        self._updates = 0
        self._step = 0

    # --- averaging -----------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # a validation right after goes on with the average
            self._average, self._raw, self._updates = None, None, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._average is None:  # nothing was loaded
            self._average = {
                name: weight.detach().float().clone() for name, weight in pl_module.named_parameters()
            }
        self._place(pl_module)
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:  # within an accumulation
            return
        self._step = trainer.global_step
        assert self._average is not None
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
        weights = [weight.detach().float() for _, weight in pl_module.named_parameters()]
        torch._foreach_lerp_(list(self._average.values()), weights, 1 - decay)
        self._updates += 1

    def _place(self, pl_module: LightningModule) -> None:
        """Lay a loaded average out as the weights are: device, and shards."""
        assert self._average is not None
        for name, weight in pl_module.named_parameters():
            average = self._average[name].to(weight.device)
            if isinstance(weight, DTensor) and not isinstance(average, DTensor):
                average = distribute_tensor(average, weight.device_mesh, weight.placements)
            self._average[name] = average

    # --- evaluating with the average -----------------------------------------------------------------------

    def _swap_in(self, pl_module: LightningModule) -> None:
        if self._average is None or not self.validate:
            return
        self._place(pl_module)
        weights = _weights(pl_module)
        self._raw = {name: weight.clone() for name, weight in weights.items()}
        for name, weight in weights.items():
            weight.copy_(self._average[name])

    def _swap_out(self, pl_module: LightningModule) -> None:
        if self._raw is None:
            return
        for name, weight in _weights(pl_module).items():
            weight.copy_(self._raw[name])
        self._raw = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_out(pl_module)  # checkpoint callbacks come after this one

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._swap_out(pl_module)

    # --- checkpoints ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._updates = state_dict["updates"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._average is None:
            return
        if self._raw is not None:  # saved in the middle of a validation
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **self._raw}
        checkpoint["ema_state_dict"] = {**checkpoint["state_dict"], **self._average}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        saved = checkpoint.get("ema_state_dict")
        names = [name for name, _ in pl_module.named_parameters()]
        self._average = None if saved is None else {name: saved[name].float() for name in names}


def _weights(pl_module: LightningModule) -> dict[str, Tensor]:
    """The weights by name, to be written to; of a sharded model its shards, which are gathered anew."""
    reshard(pl_module)
    return {name: weight.detach() for name, weight in pl_module.named_parameters()}
