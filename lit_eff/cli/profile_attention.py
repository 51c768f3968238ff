"""Standard attention against flash: the part ``attention`` of ``lit-eff profile``."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from lit_eff.bench.gpt2_speed_table import read_measured, speed_figure, speed_table
from lit_eff.cli.profile_engine import recipe_model
from lit_eff.cli.profile_job import Job
from lit_eff.errors import UserError
from lit_eff.kernels.attention.diagram import attention_diagram
from lit_eff.kernels.attention.figure2 import Case, Step, cases
from lit_eff.kernels.attention.figure2_plot import figure2_figure, figure2_table
from lit_eff.kernels.attention.figure2_records import Profiler, by_ncu, figure2_records
from lit_eff.kernels.attention.measured_scaling import measure_scaling, scaling_figure, scaling_table
from lit_eff.kernels.attention.scaling import theorem_scalings, theorem_table
from lit_eff.kernels.attention.tile_explorer import explore_attention
from lit_eff.kernels.attention.traffic import count_forward
from lit_eff.models.config import ModelConfig
from lit_eff.profiling.config import ProfileConfig
from lit_eff.profiling.devices import Device
from lit_eff.profiling.report import Findings
from lit_eff.profiling.tile_explorer import tile_figure, tile_table
from lit_eff.profiling.traffic import KernelTraffic
from lit_eff.profiling.unavailable import UnavailableError


def attention(job: Job) -> Findings:
    """One forward counted load by load beside its formula; figure 2 at the recipe's lengths."""
    found = Findings()
    settings = job.profile.attention
    if settings.lengths:
        _figure2(job, found)
    if settings.speed_results is not None:
        _add_speeds(found, Path(settings.speed_results))
    try:
        found.records.append(counted(job))
    except UserError as error:
        found.notes.append(f"counted traffic unavailable: {error}")
    return found


def _figure2(job: Job, found: Findings) -> None:
    settings = job.profile.attention
    sizes = {"heads": settings.heads, "head_dim": settings.head_dim}
    workloads = cases(settings.lengths, settings.batch, **sizes)
    profiler = _profiler(job, found)
    with job.console.status("Running attention forward and backward, standard and flash"):
        records = figure2_records(
            workloads, job.device.capability, timed=job.gpu is not None, profiler=profiler
        )
        scaling = measure_scaling(profiler)
    found.records += records
    found.tables += [figure2_table(records), scaling_table(scaling)]
    found.figures["attention_figure_2"] = figure2_figure(records)
    found.figures["attention_scaling"] = scaling_figure(scaling)
    found.tables.append(theorem_table(theorem_scalings()))
    shape = workloads[0].shape
    explored = explore_attention(shape, job.device)
    found.tables.append(tile_table(explored))
    found.figures["attention_tiles"] = tile_figure(explored)
    found.figures["attention_tile_schedule"] = attention_diagram(shape, job.device.capability)


def _profiler(job: Job, found: Findings) -> Profiler | None:
    """ncu where it can be used; else a note says why not."""
    if job.gpu is None:
        found.notes.append("time and measured bytes unavailable: no NVIDIA GPU that CUDA can use")
        return None
    if not job.profile.measure:
        found.notes.append("measured bytes unavailable: profile.measure is off")
        return None
    try:
        by_ncu([Step("flash", Case(1, 128, 1))])
    except UnavailableError as error:
        found.notes.append(f"measured bytes unavailable: {error}")
        return None
    return by_ncu


def _add_speeds(found: Findings, path: Path) -> None:
    try:
        measured = read_measured(path)
    except UserError as error:
        found.notes.append(f"training speeds are left out: {error}")
        return
    found.tables.append(speed_table(measured))
    found.figures["attention_training_speed"] = speed_figure(measured)


def counted(job: Job) -> KernelTraffic:
    """One forward at the heads of the recipe's model, or at the section's sizes where it has none."""
    settings = job.profile.attention
    model = recipe_model(job)
    if model is not None:
        return count_at(job.profile, model, job.device, job.console)
    sizes = (settings.count_heads, settings.count_heads, settings.head_dim)
    return _count(job.profile, sizes, True, None, job.device, job.console)


def count_at(profile: ProfileConfig, model: ModelConfig, device: Device, console: Console) -> KernelTraffic:
    """The Triton forward kernel at a model's heads, counted in the interpreter beside its formula.

    Its baseline is standard attention's three kernels, counted on the same tensors.
    """
    sizes = (model.heads, model.n_kv_heads, model.head_size)
    return _count(profile, sizes, model.causal, model.window, device, console)


def _count(
    profile: ProfileConfig,
    sizes: tuple[int, int, int],
    causal: bool,
    window: int | None,
    device: Device,
    console: Console,
) -> KernelTraffic:
    heads, kv_heads, head_dim = sizes
    settings = profile.attention
    with console.status("Counting the attention kernel's loads and stores in Triton's interpreter"):
        return count_forward(
            settings.count_batch,
            heads,
            kv_heads,
            settings.count_length,
            head_dim,
            causal,
            window=window,
            device=device.name,
        )
