"""A few training steps of the recipe, recorded: the part ``training`` of ``lit-eff profile``."""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lit_eff.cli.lightning import lightning_cli
from lit_eff.cli.profile_job import Job
from lit_eff.errors import UserError
from lit_eff.profiling.carbon import Grid, footprint_table
from lit_eff.profiling.measured import measure_command
from lit_eff.profiling.nvtx import owners_table
from lit_eff.profiling.report import Findings
from lit_eff.profiling.sampled import GpuSampler
from lit_eff.profiling.timeline import Sample
from lit_eff.training.callbacks import Profile

CALLBACKS = "lit_eff.training.callbacks"
COUNTERS = ("dram_read_bytes", "dram_written_bytes", "l2_bytes")


def training(job: Job) -> Findings:
    """Train for the steps asked for, in the run's own folder, under the profiling callback.

    On a GPU its counters are sampled meanwhile, and one more step runs under ncu.

    Raises:
        UserError: if the recipe has no model to train.
    """
    settings = job.profile.training
    if "model" not in job.recipe.values:
        raise UserError(
            f"recipe {job.recipe.name!r} has no model: the part 'training' of profile.parts needs one"
        )
    profile = {
        "start": settings.warmup_steps,
        "steps": settings.steps,
        "count": True,
        "meter": {"class_path": "lit_eff.profiling.energy.EnergyMeter", "init_args": _meter(job)},
    }
    logger = dict(job.recipe.values.get("trainer", {}).get("logger") or {})
    logger["init_args"] = {**logger.get("init_args", {}), "version": job.folder.name}
    values = _shortened(
        job,
        settings.warmup_steps + settings.steps + 2,  # the profiler's own first, one counted
        [
            {"class_path": f"{CALLBACKS}.RunProgress"},
            {"class_path": f"{CALLBACKS}.Profile", "init_args": profile},
        ],
        logger=logger,
    )
    sampler = None if job.gpu is None else GpuSampler(time.perf_counter)
    with sampler or nullcontext():
        cli = lightning_cli(replace(job.recipe, values=values), ["fit"])
    callbacks: list[Any] = cli.trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    (recorded,) = (each for each in callbacks if isinstance(each, Profile))
    found = Findings(tables=[*recorded.tables], notes=[*recorded.notes], timeline=recorded.timeline)
    grid = Grid(job.profile.energy.pue, job.profile.energy.kg_per_kwh)
    tokens = cli.datamodule.batch_size * cli.trainer.accumulate_grad_batches * cli.datamodule.context
    assert recorded.meter is not None
    found.tables.append(footprint_table(recorded.meter.joules, settings.steps * tokens, grid))
    if sampler is not None:
        recorded.timeline.samples += [
            Sample(each.counter, each.time - recorded.began, each.value)
            for each in sampler.samples
            if each.time >= recorded.began
        ]
        found.notes += sampler.notes
        _measure(job, found)
    return found


def _shortened(job: Job, steps: int, callbacks: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    """The recipe's sections, with a trainer of so many steps and no validation."""
    trainer = {
        **job.recipe.values.get("trainer", {}),
        "max_steps": steps,
        "limit_val_batches": 0,
        "val_check_interval": None,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
        "callbacks": callbacks,
        **settings,
    }
    return {**job.recipe.values, "trainer": trainer}


def _meter(job: Job) -> dict[str, Any]:
    """Of the machine that trains. Without a meter: the watts of the recipe, or of a GPU's board."""
    watts = job.profile.energy.watts
    if job.gpu is None:
        return {"device": "cpu", "watts": watts}
    return {"device": "cuda", "watts": job.device.board_power_watts if watts is None else watts}


def _measure(job: Job, found: Findings) -> None:
    """One step after the warm-up under ncu, its kernels' bytes summed by module; or a note says why not."""
    if not job.profile.measure:
        found.notes.append("measured bytes by module unavailable: profile.measure is off")
        return
    step = job.profile.training.warmup_steps
    with (
        TemporaryDirectory() as folder,
        job.console.status("Training a step under ncu, minutes if it has thousands of kernels"),
    ):
        logger = "lightning.pytorch.loggers.TensorBoardLogger"
        values = _shortened(
            job,
            step + 1,
            [{"class_path": f"{CALLBACKS}.NvtxRanges"}],
            logger={"class_path": logger, "init_args": {"save_dir": folder}},
        )
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(json.dumps(values), encoding="utf-8")  # which is YAML too
        command = [sys.executable, "-m", "lit_eff.cli.main", "fit", "--config", str(recipe)]
        try:
            kernels = measure_command(command, metrics=COUNTERS, nvtx_include=[f"step {step}/"])
        except UserError as error:
            found.notes.append(f"measured bytes by module unavailable: {error}")
            return
    found.tables.append(owners_table(kernels))
