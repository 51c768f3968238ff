"""The TensorBoard writer of a run, if it has one."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info


def summary_writer(trainer: Trainer) -> Any | None:
    """A ``SummaryWriter`` on rank 0 of a run with a TensorBoardLogger, otherwise ``None``."""
    if not trainer.is_global_zero:
        return None
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            return logger.experiment
    return None


def say_if_off(trainer: Trainer, what: str) -> None:
    """Say that ``what`` is off in a run without TensorBoard."""
    if not any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        rank_zero_info(f"{what}: off, the trainer has no TensorBoardLogger")
