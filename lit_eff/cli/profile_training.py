"""A few training steps of the recipe, recorded: the part ``training`` of ``lit-eff profile``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lit_eff.cli.lightning import lightning_cli
from lit_eff.cli.profile import Job
from lit_eff.errors import UserError
from lit_eff.profiling.carbon import Grid, footprint_table
from lit_eff.profiling.report import Findings
from lit_eff.training.callbacks import Profile


def training(job: Job) -> Findings:
    """Train for the steps asked for, in the run's own folder, under the profiling callback.

    Raises:
        UserError: if the recipe has no model to train.
    """
    settings, values = job.profile.training, job.recipe.values
    if "model" not in values:
        raise UserError(
            f"recipe {job.recipe.name!r} has no model: the part 'training' of profile.parts needs one"
        )
    trainer = values.get("trainer", {})
    logger = dict(trainer.get("logger") or {})
    logger["init_args"] = {**logger.get("init_args", {}), "version": job.folder.name}
    trainer = {
        **trainer,
        "logger": logger,
        "max_steps": settings.warmup_steps + settings.steps + 2,  # the profiler's own first, one counted
        "limit_val_batches": 0,
        "val_check_interval": None,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
        "callbacks": [
            {"class_path": "lit_eff.training.callbacks.RunProgress"},
            {
                "class_path": "lit_eff.training.callbacks.Profile",
                "init_args": {
                    "start": settings.warmup_steps,
                    "steps": settings.steps,
                    "count": True,
                    "meter": {"class_path": "lit_eff.profiling.energy.EnergyMeter", "init_args": _meter(job)},
                },
            },
        ],
    }
    cli = lightning_cli(replace(job.recipe, values={**values, "trainer": trainer}), ["fit"])
    callbacks: list[Any] = cli.trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    (recorded,) = (each for each in callbacks if isinstance(each, Profile))
    grid = Grid(job.profile.energy.pue, job.profile.energy.kg_per_kwh)
    tokens = cli.datamodule.batch_size * cli.trainer.accumulate_grad_batches * cli.datamodule.context
    assert recorded.meter is not None
    footprint = footprint_table(recorded.meter.joules, settings.steps * tokens, grid)
    return Findings(tables=[*recorded.tables, footprint], notes=recorded.notes, timeline=recorded.timeline)


def _meter(job: Job) -> dict[str, Any]:
    """Of the machine that trains. Without a meter: the watts of the recipe, or of a GPU's board."""
    watts = job.profile.energy.watts
    if job.gpu is None:
        return {"device": "cpu", "watts": watts}
    return {"device": "cuda", "watts": job.device.board_power_watts if watts is None else watts}
