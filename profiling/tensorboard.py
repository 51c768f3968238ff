"""Writes traffic records to TensorBoard: a table as text and a bar plot against the baseline.

The writer is anything with ``add_text`` and ``add_figure`` as torch's ``SummaryWriter`` has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lit_eff.profiling.traffic import UNITS, KernelTraffic, Number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SummaryWriterLike(Protocol):
    """What is used of ``torch.utils.tensorboard.SummaryWriter``."""

    def add_text(self, tag: str, text_string: str, global_step: int | None = None) -> Any: ...

    def add_figure(self, tag: str, figure: Any, global_step: int | None = None) -> Any: ...


def write_traffic(
    writer: SummaryWriterLike, records: Sequence[KernelTraffic], *, step: int = 0, tag: str = "kernels"
) -> None:
    """Write a markdown table of ``records`` and, if any of them knows its HBM bytes, a bar plot."""
    writer.add_text(tag, traffic_markdown(records), step)
    figure = traffic_figure(records)
    if figure is not None:
        writer.add_figure(f"{tag}/hbm_bytes", figure, step)


def traffic_markdown(records: Sequence[KernelTraffic]) -> str:
    """A markdown table: a row a number, with its source and how it was found, kernel after kernel."""
    lines = ["| kernel | shape | quantity | value | source | how |", "| --- | --- | --- | --- | --- | --- |"]
    for record in records:
        shape = ", ".join(f"{name} {value}" for name, value in record.shape.items())
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
    axes.bar_label(drawn, labels=[_human(value) for _, value, _ in bars])
    axes.set_xticks(range(len(bars)), [label for label, _, _ in bars], fontsize=8)
    axes.set_ylabel("requested of HBM, bytes")
    axes.margins(y=0.15)
    return figure


def _human(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
