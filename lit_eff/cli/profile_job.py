"""What every part of ``lit-eff profile`` works from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lit_eff.cli.compose import Recipe
from lit_eff.profiling.config import ProfileConfig
from lit_eff.profiling.devices import Device, find_device, get_device


@dataclass(frozen=True)
class Job:
    """``gpu`` is this machine's, or None; ``folder`` is the run's."""

    recipe: Recipe
    profile: ProfileConfig
    folder: Path
    device: Device
    gpu: str | None
    console: Console


def make_job(recipe: Recipe, profile: ProfileConfig, console: Console) -> Job:
    """The next run folder (not made yet), and whose limits count: this machine's GPU, or the recipe's."""
    import torch
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = recipe.values.get("trainer", {}).get("logger") or {}
    save_dir = logger.get("init_args", {}).get("save_dir", "runs") if isinstance(logger, dict) else "runs"
    folder = Path(TensorBoardLogger(save_dir, recipe.name).log_dir)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    device = (find_device(gpu) if gpu else None) or get_device(profile.device)
    return Job(recipe, profile, folder, device, gpu, console)
