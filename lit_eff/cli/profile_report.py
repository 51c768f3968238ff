"""What ``lit-eff profile`` shows in the terminal and writes into the run folder."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

import lit_eff
from lit_eff.bench.results import installed_version
from lit_eff.cli.profile_job import Job
from lit_eff.profiling.devices import driver_version
from lit_eff.profiling.report import Findings, ProfileReport, ReportTable, text_of
from lit_eff.profiling.roofline_plot import roofline_figure
from lit_eff.profiling.tensorboard import with_baseline
from lit_eff.profiling.timeline import Timeline
from lit_eff.profiling.traffic import KernelTraffic

ROWS = 12  # of a table in the terminal; more on the page


def show(found: Findings, console: Console) -> None:
    """The records as one table, every other table, and the notes."""
    counted = [record for record in found.records if record.get("read_bytes", "counted") is not None]
    if counted:
        show_counts(counted, console)
    for table in found.tables:
        print_table(table, console)
    for note in found.notes:
        console.print(f"[yellow]note:[/] {note}", highlight=False, soft_wrap=True)


def show_counts(records: Sequence[KernelTraffic], console: Console) -> None:
    """Bytes requested of HBM, counted beside modelled; baselines and their parts under each kernel."""
    shown = [each for record in records for each in with_baseline(record)]
    shown = [each for each in shown if each.hbm_bytes("counted") is not None]
    shapes = [[(name, str(value)) for name, value in each.shape.items()] for each in shown]
    common = set.intersection(*map(set, shapes))
    table = Table("kernel", title="Bytes requested of HBM, read and written")
    if any(set(shape) != common for shape in shapes):
        table.add_column("shape")
    for name in ("counted", "modelled", ""):
        table.add_column(name, justify="right")
    for each, sizes in zip(shown, shapes, strict=True):
        own = [", ".join(" ".join(size) for size in sizes if size not in common)]
        formula = each.hbm_bytes("modelled")
        table.add_row(
            each.kernel,
            *own[: len(table.columns) - 4],
            f"{each.hbm_bytes('counted'):,}",
            "-" if formula is None else f"{formula:,}",
            "[green]=[/]" if each.counted_equals_modelled else "[red]DIFFERENT[/]",
        )
    console.print(table)
    equal = all(each.counted_equals_modelled for each in shown)
    shape = ", ".join(" ".join(size) for size in shapes[0] if size in common)
    console.print(
        f"{shape}\ncounted in Triton's interpreter and modelled by formula: "
        f"{'equal to the byte' if equal else '[red]DIFFERENT[/]'}",
        soft_wrap=True,
        highlight=False,
    )
    for record in records:
        if record.baseline is not None and record.baseline_ratio is not None:
            console.print(f"{record.baseline.kernel} asks for {record.baseline_ratio:.1f}x", highlight=False)


def print_table(table: ReportTable, console: Console) -> None:
    """What all rows share is said beneath, with the caption."""
    table = table.folded()
    shown = Table(title=table.title)
    for column, numeric in zip(table.columns, table.numeric, strict=True):
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in table.rows[:ROWS]:
        shown.add_row(*map(text_of, row))
    console.print(shown)
    if len(table.rows) > ROWS:
        console.print(f"... and {len(table.rows) - ROWS} more rows, which the page shows")
    console.print(table.caption, highlight=False, soft_wrap=True, markup=False)


def finish(job: Job, found: Sequence[Findings], command: str) -> tuple[ProfileReport, list[Path]]:
    """The report of all parts, written into the job's folder with figures, traces and TensorBoard events."""
    import torch
    from torch.utils.tensorboard import SummaryWriter

    from lit_eff.kernels.l2_bandwidth import measure_l2_bandwidth
    from lit_eff.profiling.write import write_report

    report = ProfileReport(
        name=job.recipe.name,
        environment=environment(job, command),
        records=tuple(record for each in found for record in each.records),
        tables=tuple(table for each in found for table in each.tables),
        notes=tuple(note for each in found for note in each.notes),
    )
    timeline = Timeline()
    for each in found:
        if each.timeline is not None:
            timeline.spans += each.timeline.spans
            timeline.samples += each.timeline.samples
            timeline.dropped += each.timeline.dropped
    figures = {name: figure for each in found for name, figure in each.figures.items()}
    bandwidth = None
    if report.records and job.gpu is not None and job.profile.measure:
        bandwidth = measure_l2_bandwidth(torch.device("cuda"))
    roofline = roofline_figure(report.records, job.device, bandwidth)
    if roofline is not None:
        figures["roofline"] = roofline
    job.folder.mkdir(parents=True, exist_ok=True)
    with SummaryWriter(str(job.folder)) as writer:
        written = write_report(report, timeline, figures, job.folder, writer)
    return report, written


def environment(job: Job, command: str) -> dict[str, str]:
    """The machine, the versions that matter and the command: what a stranger needs to do it again."""
    from lit_eff.training.callbacks.artifacts import git_commit

    found = {
        "command": command,
        "device": job.gpu or f"no GPU; limits of {job.device.name}",
        "driver": driver_version(),
        "cpu": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "lit_eff": lit_eff.__version__,
        "commit": git_commit(),
        **{name: installed_version(name) for name in ("torch", "triton")},
    }
    return {name: value for name, value in found.items() if value}
