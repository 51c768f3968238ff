"""Writes traffic records and reports to TensorBoard: scalars, tables as text, figures, and hparams.

The writer is torch's ``SummaryWriter`` or anything with its methods. Tags are ``group/name``; the groups of
scalars are a quantity and its source, so that kernels stand side by side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lit_eff.profiling.report import Cell, ProfileReport, ReportTable, human_bytes, text_of
from lit_eff.profiling.titles import shape_text, titles
from lit_eff.profiling.traffic import BEST, UNITS, KernelTraffic, LineTraffic, Number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SCALARS = (
    "l2_bytes",
    "shared_memory_bytes",
    "registers_per_thread",
    "spill_bytes",
    "occupancy",
    "flops",
    "seconds",
    "joules",
)


class SummaryWriterLike(Protocol):
    """What is used of ``torch.utils.tensorboard.SummaryWriter``."""

    file_writer: Any  # takes summaries that are already made

    def add_text(self, tag: str, text_string: str, global_step: int | None = None) -> Any: ...

    def add_figure(self, tag: str, figure: Any, global_step: int | None = None) -> Any: ...

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int | None = None) -> Any: ...


def write_traffic(
    writer: SummaryWriterLike, records: Sequence[KernelTraffic], *, step: int = 0, tag: str = "kernels"
) -> None:
    """Write a markdown table of ``records`` and, if any of them knows its HBM bytes, a bar plot."""
    writer.add_text(tag, traffic_markdown(records), step)
    figure = traffic_figure(records)
    if figure is not None:
        writer.add_figure(f"{tag}/hbm_bytes", figure, step)


def write_profile(
    writer: SummaryWriterLike, report: ProfileReport, figures: Mapping[str, Figure], *, step: int = 0
) -> None:
    """A whole report.

    Scalars: each number of :data:`SCALARS` and the ratio to the baseline, a tag a kernel. Text: machine and
    notes, a table a kernel, its lines, and every table. Images: the figures.
    """
    writer.add_text("profile/about", _about(report), step)
    scalars = traffic_scalars(report.records)
    for tag, value in scalars.items():
        writer.add_scalar(tag, value, step)
    _write_hparams(writer, report, list(scalars))
    for kernel in dict.fromkeys(record.kernel for record in report.records):
        records = [record for record in report.records if record.kernel == kernel]
        text = "\n\n".join(numbers_markdown(each) for record in records for each in with_baseline(record))
        writer.add_text(f"kernels/{clean(kernel)}", text, step)
        lines = {title: record.lines for title, record in _titled(records) if record.lines}
        if lines:
            tables = [f"**{title}**\n\n{lines_markdown(each)}" for title, each in lines.items()]
            writer.add_text(f"lines/{clean(kernel)}", "\n\n".join(tables), step)
    for table in report.tables:
        writer.add_text(f"tables/{clean(table.title)}", table_markdown(table), step)
    for name, figure in figures.items():
        writer.add_figure(f"figures/{clean(name)}", figure, step)


def _write_hparams(writer: SummaryWriterLike, report: ProfileReport, scalars: Sequence[str]) -> None:
    """What runs differ in, so that TensorBoard's HPARAMS tab tables scalars over device and versions."""
    from torch.utils.tensorboard.summary import hparams

    if scalars:
        names = ("device", "commit", "torch", "triton")
        values = {name: report.environment[name] for name in names if name in report.environment}
        summaries: Any = hparams(values, dict.fromkeys(scalars, 0.0))  # type: ignore[no-untyped-call]
        for summary in summaries:
            writer.file_writer.add_summary(summary)


def traffic_scalars(records: Sequence[KernelTraffic]) -> dict[str, float]:
    """By tag, as in ``hbm_bytes_counted/attention_forward_kernel``, sorted so that groups stay together."""
    found: dict[str, float] = {}
    for title, record in _titled(records):
        values: dict[str, float | int | None] = {
            f"{quantity}_{number.source}": number.value
            for quantity in SCALARS
            for number in record.numbers.get(quantity, ())
        }
        for source in BEST:
            values[f"hbm_bytes_{source}"] = record.hbm_bytes(source)
        if record.compared is not None:
            values[f"baseline_ratio_{record.compared[2]}"] = record.baseline_ratio
        found |= {f"{name}/{clean(title)}": value for name, value in values.items() if value is not None}
    return dict(sorted(found.items()))


def clean(name: str) -> str:
    """A name as one level of a tag: TensorBoard splits at slashes and allows few other signs."""
    return re.sub(r"[^\w.#=-]+", "_", name).strip("_")


def _titled(records: Sequence[KernelTraffic]) -> list[tuple[str, KernelTraffic]]:
    return list(zip(titles(records), records, strict=True))


def _about(report: ProfileReport) -> str:
    machine = ["| | |", "| --- | --- |", *(f"| {k} | {_cell(v)} |" for k, v in report.environment.items())]
    return "\n".join([*machine, "", *(f"- {note}" for note in report.notes)])


def numbers_markdown(record: KernelTraffic) -> str:
    """Quantities down, sources across, each number with how it was found."""
    rows = [f"**{record.kernel}** {shape_text(record.shape)}", ""]
    rows += [f"| quantity | {' | '.join(BEST)} | unavailable |", "| --- | --: | --: | --: | --- |"]
    for quantity, numbers in record.numbers.items():
        cells = [_shown([number for number in numbers if number.source == source]) for source in BEST]
        why = "; ".join(number.detail for number in numbers if number.source == "unavailable")
        rows.append(f"| {quantity}, {UNITS[quantity]} | {' | '.join(cells)} | {_cell(why)} |")
    return "\n".join(rows)


def _shown(numbers: Sequence[Number]) -> str:
    return ", ".join(
        f"{_cell(number.value)} ({_cell(number.detail)})" if number.detail else _cell(number.value)
        for number in numbers
    )


def lines_markdown(lines: Sequence[LineTraffic]) -> str:
    """Bytes by source line and tensor, counted, in the order of the file."""
    rows = ["| line | source | tensor | kind | requested, B | sectors, B | masked lanes |"]
    rows.append("| --: | --- | --- | --- | --: | --: | --: |")
    for each in sorted(lines, key=lambda each: (each.file, each.line)):
        numbers = f"{each.requested_bytes:,} | {each.sector_bytes:,} | {each.masked_lanes:,}"
        source = f"`{_cell(each.text.strip())}`"
        rows.append(f"| {each.line} | {source} | {each.tensor} | {each.kind} | {numbers} |")
    return "\n".join(rows)


def table_markdown(table: ReportTable) -> str:
    """Rows, then the caption, which says what all rows share."""
    table = table.folded()
    head = [f"| {' | '.join(map(_cell, table.columns))} |", "|" + " --- |" * len(table.columns)]
    rows = [f"| {' | '.join(map(_cell, row))} |" for row in table.rows]
    return "\n".join([*head, *rows, "", table.caption])


def _cell(value: Cell) -> str:
    """With what would end a cell escaped."""
    return text_of(value).replace("|", "\\|").replace("\n", " ")


def traffic_markdown(records: Sequence[KernelTraffic]) -> str:
    """A markdown table: a row a number, with its source and how it was found, kernel after kernel."""
    lines = ["| kernel | shape | quantity | value | source | how |", "| --- | --- | --- | --- | --- | --- |"]
    for record in records:
        shape = shape_text(record.shape)
        for each in with_baseline(record):
            for quantity, numbers in each.numbers.items():
                lines += [_row(each.kernel, shape, quantity, number) for number in numbers]
        if record.baseline is not None and record.compared is not None:
            ratio = f"{record.baseline_ratio:.2f}x"
            how = f"HBM bytes of {record.baseline.kernel} over this kernel's"
            lines.append(f"| {record.kernel} | {shape} | saving | {ratio} | {record.compared[2]} | {how} |")
    return "\n".join(lines)


def with_baseline(record: KernelTraffic) -> list[KernelTraffic]:
    """The record, its parts, its baseline and the baseline's parts: what a table shows, in order."""
    shown = [record, *record.parts]
    return shown + (with_baseline(record.baseline) if record.baseline is not None else [])


def _row(kernel: str, shape: str, quantity: str, number: Number) -> str:
    value = "unavailable" if number.value is None else f"{number.value:,} {UNITS[quantity]}"
    return f"| {kernel} | {shape} | {quantity} | {value} | {number.source} | {number.detail} |"


def traffic_figure(records: Sequence[KernelTraffic]) -> Figure | None:
    """Bars of HBM bytes, the baseline's beside each kernel's; None if no record knows its bytes."""
    from matplotlib.figure import Figure

    bars: list[tuple[str, int, str]] = []
    for record in records:
        for each, color in ((record.baseline, "tab:red"), (record, "tab:green")):
            for source in ("measured", "counted", "modelled"):
                value = each.hbm_bytes(source) if each is not None else None
                if each is not None and value is not None:
                    bars.append((f"{each.kernel}\n({source})", value, color))
                    break
    if not bars:
        return None
    figure = Figure(figsize=(max(4.0, 1.8 * len(bars)), 3.6), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.bar(range(len(bars)), [value for _, value, _ in bars], color=[color for *_, color in bars])
    axes.bar_label(drawn, labels=[human_bytes(value) for _, value, _ in bars])
    axes.set_xticks(range(len(bars)), [label for label, _, _ in bars], fontsize=8)
    axes.set_ylabel("requested of HBM, bytes")
    axes.margins(y=0.15)
    return figure
