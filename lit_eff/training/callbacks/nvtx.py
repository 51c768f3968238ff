"""NVTX ranges around training steps and modules, for ncu and Nsight Systems to name kernels' owners by."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_eff.profiling.nvtx import ModuleRanges


class NvtxRanges(Callback):
    """Opens the ranges of :class:`lit_eff.profiling.nvtx.ModuleRanges` while training, on every rank.

    A step's range covers its batches, the optimizer's work included, and is named after the optimizer steps
    taken before it: ``step 3``. Hooks and ranges cost time, so this is for runs under a profiler. Without
    NVTX (a CPU build of PyTorch) it says so and does nothing.
    """

    def __init__(self) -> None:
        self._training, self._step = ExitStack(), ExitStack()
        self._ranges: ModuleRanges | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            torch.cuda.nvtx.mark("training starts")  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            trainer.print(f"NVTX ranges: none, {error}")
            return
        self._ranges = self._training.enter_context(ModuleRanges(pl_module))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._ranges is not None:
            self._step.enter_context(self._ranges.step(trainer.global_step))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._step.close()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        self._step.close()
        self._training.close()
        self._ranges = None
