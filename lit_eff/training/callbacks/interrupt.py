"""Ctrl-C and SIGTERM end a run with a checkpoint that resumes exactly."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class TrainingInterrupted(SystemExit):
    """The run was ended by a signal; the process exits with 128 + its number, as shells report it.

    On other ranks than 0 the code is 0: Lightning's launcher kills all processes when one fails, and rank 0
    may still be closing its files.
    """

    def __init__(self, signum: int, *, rank: int = 0) -> None:
        super().__init__(128 + signum if rank == 0 else 0)


# Not one of Lightning's Checkpoint callbacks: the first of those is the run's trainer.checkpoint_callback.
class SaveOnInterrupt(Callback):
    """On Ctrl-C or SIGTERM, finish the optimizer step, write ``interrupted.ckpt``, and exit with 130 or 143.

    Gradients of a half-done accumulation are in no checkpoint, so one written in the middle would not resume
    exactly. All ranks stop at the same step, whichever of them got the signal. A second Ctrl-C stops at once,
    without a checkpoint. During a validation the checkpoint is written between two batches; on resuming, that
    validation is skipped.

    The file is beside the run's other checkpoints.
    """

    filename = "interrupted.ckpt"

    def __init__(self) -> None:
        self._received: int | None = None
        self._training = False  # between the first step and the end of the run
        self._live = False
        self._at_step_boundary = False
        self._step = 0
        self._previous: dict[int, Any] = {}
        self._saved: Path | None = None

    # --- signals -------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._received, self._saved, self._training = None, None, False
        # After all others, so that what is saved has their updates of this step (an average's, say).
        others = [callback for callback in _callbacks(trainer) if callback is not self]
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]
        self._live = stage == "fit" and threading.current_thread() is threading.main_thread()
        if self._live:
            self._previous = {number: signal.getsignal(number) for number in _NAMES}
            self._listen()

    def _listen(self) -> None:
        for number in _NAMES:
            signal.signal(number, self._handle)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._folder = _checkpoint_folder(trainer)
        self._training, self._at_step_boundary = True, True
        self._step = trainer.global_step
        if self._live:
            self._listen()  # Lightning has put its own SIGTERM handler in between, which stops at any batch

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self._live:  # Lightning restores the handlers it found, this one among them, after a run
            signal.signal(signum, self._previous[signum])
            signal.raise_signal(signum)
            return
        again = self._received is not None
        if not self._training or (again and signum == signal.SIGINT):
            raise TrainingInterrupted(signum)
        self._received = signum
        if not again:
            # Not print: a signal may arrive inside one, and buffered writers cannot be re-entered.
            name = _NAMES[signal.Signals(signum)]
            os.write(2, f"\n{name}: saving after this step; Ctrl-C stops at once\n".encode())

    def _release(self) -> None:
        if self._live:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
        self._live = self._training = False

    # --- stopping ------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._at_step_boundary = trainer.global_step != self._step
        self._step = trainer.global_step
        self._stop_if_asked(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._training:
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if not self._at_step_boundary:
            return
        if not trainer.strategy.reduce_boolean_decision(self._received is not None, all=False):
            return
        path = self._folder / self.filename
        trainer.save_checkpoint(path, weights_only=False)
        self._saved = path
        raise TrainingInterrupted(self._received or signal.SIGTERM, rank=trainer.global_rank)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()
        if not isinstance(exception, TrainingInterrupted) or not trainer.is_global_zero:
            return
        # Printed here, once the progress bar is off the screen.
        if self._saved is not None:
            line = f"stopped after step {trainer.global_step}; resume with --ckpt_path {self._saved}"
        elif trainer.global_step == 0:
            line = "stopped before the first step; nothing to save"
        else:
            line = f"stopped in step {trainer.global_step + 1} without a checkpoint of it"
        print(f"Interrupted: {line}", file=sys.stderr, flush=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()


def _callbacks(trainer: Trainer) -> list[Callback]:
    found: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    return found


def _checkpoint_folder(trainer: Trainer) -> Path:
    """Where the run keeps its checkpoints. Collective: all ranks ask."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            return Path(callback.dirpath)
    return Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"
