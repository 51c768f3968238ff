"""What `lit-eff bench gpt2_training` says of its jobs: records, ratios, verdicts, a table and a picture."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from lit_eff.bench.gpt2_job import Size
from lit_eff.bench.results import installed_version
from lit_eff.errors import require
from lit_eff.files import atomic_path
from lit_eff.profiling.devices import driver_version, find_device

EAGER, FREE = "eager", "none-compile"
MODELS = ("lit_eff-model", "lit_eff-model-graph")
OURS = ("lit_eff-compile", "lit_eff-graph", *MODELS)
BASELINES = ("sdpa-compile", "sdpa-unmasked-compile")
GOALS = {"small": 3.5, "medium": 3.0}  # over eager attention: FlashAttention (Dao et al. 2022), table 2
MODEL_GOAL = 1.2  # of our own model, over Hugging Face's compiled as it is
TABLE_WIDTH = 100  # as narrow as the table can be read


@dataclass
class Row:
    """One job's figures; ``fault`` says why there are none."""

    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    milliseconds: list[float] = field(default_factory=list)
    peak_memory_bytes: int | None = None
    losses: list[float] | None = None
    kernels: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None

    @property
    def median(self) -> float | None:
        """Milliseconds a step."""
        return statistics.median(self.milliseconds) if self.milliseconds else None


def report(name: str, size: Size, rows: list[Row]) -> list[dict[str, Any]]:
    """One record a job, ratios and shares worked out."""
    by_name = {row.name: row for row in rows}
    free = by_name[FREE].median if FREE in by_name else None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    found, driver = find_device(device), driver_version()
    records = []
    for row in rows:
        record: dict[str, Any] = {
            "benchmark": "gpt2_training",
            "size": name,
            "implementation": row.name,
            "device": device,
            "driver": driver,
            "torch": torch.__version__,
            "triton": installed_version("triton"),
            "transformers": require("transformers", "hf").__version__,
            "batch": size.batch,
            "length": size.length,
            "source": "measured",
        }
        if row.median is None:
            records.append(record | {"unavailable": row.fault})
            continue
        speed = size.batch * size.length * 1e3 / row.median
        kernels = row.kernels
        record |= {
            **row.facts,
            "milliseconds": row.median,
            "turns": len(row.milliseconds),
            "tokens_per_second": speed,
            "ratios": {other.name: other.median / row.median for other in rows if other.median is not None},
            "mfu": speed * row.facts["flops_per_token"] / found.peak("bfloat16") if found else None,
            "peak_memory_bytes": row.peak_memory_bytes,
            "attention_share_by_subtraction": None,
            **kernels,
            "losses": row.losses,
        }
        if free and row.name not in (FREE, *MODELS) and "graph" not in row.name:  # else it is not that step
            record["attention_share_by_subtraction"] = 1 - free / row.median
        attention = kernels.get("attention_milliseconds")
        record["attention_share_of_kernels"] = attention and attention / kernels["kernel_milliseconds"]
        records.append(record)
    return records


def loss_differences(records: list[dict[str, Any]]) -> dict[str, float]:
    """Mean over the steps of \\|loss - the first baseline's loss\\|, by implementation."""
    curves = {each["implementation"]: each.get("losses") for each in records}
    reference = next((curves[name] for name in BASELINES if curves.get(name)), None)
    if reference is None:
        return {}
    return {
        name: float(np.abs(np.subtract(losses, reference)).mean())
        for name, losses in curves.items()
        if losses and losses is not reference
    }


def verdicts(size: str, records: list[dict[str, Any]]) -> list[str]:
    """What must hold of ours, in words: against Hugging Face compiled and eager, and the losses."""
    lines = []
    differences = loss_differences(records)
    noise = max((value for name, value in differences.items() if name not in OURS), default=None)
    for record in records:
        name = record["implementation"]
        if name not in OURS:
            continue
        if "ratios" not in record:
            lines.append(f"{size}: {name} did not run, so it is not compared")
            continue
        goals = dict.fromkeys(BASELINES, 1.0) | {EAGER: GOALS.get(size)}
        if name in MODELS:
            goals[BASELINES[0]] = MODEL_GOAL
        for other, goal in goals.items():
            ratio = record["ratios"].get(other)
            if ratio is not None and goal is not None:
                word = "holds" if ratio >= goal else "FALLS SHORT"
                lines.append(f"{size}: {name} {ratio:.2f}x {other} (at least {goal:g}x: {word})")
        if name in differences and noise is not None:
            word = "within" if differences[name] <= 2 * noise else "BEYOND"
            lines.append(
                f"{size}: losses of {name} differ by {differences[name]:.2g} on average, "
                f"Hugging Face's among themselves by {noise:.2g}: {word} noise"
            )
    return lines


def report_console() -> Console:
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    return console


def show(size: str, records: list[dict[str, Any]], console: Console) -> None:
    """The table of one size, and its verdicts."""
    shape = f"batch {records[0]['batch']} x {records[0]['length']}"
    table = Table(title=f"GPT-2 {size}, {shape}, {records[0]['device']}")
    table.add_column("job", no_wrap=True)
    for heading in ("tokens/s", "ms", "x eager", "MFU", "GB", "kernels, ms", "share", "breaks"):
        table.add_column(heading, justify="right")
    for each in records:
        if "unavailable" in each and "ratios" not in each:
            table.add_row(each["implementation"], f"unavailable: {each['unavailable']}")
            continue
        table.add_row(
            each["implementation"],
            f"{each['tokens_per_second']:,.0f}",
            f"{each['milliseconds']:.1f}",
            _format(each["ratios"].get(EAGER), ".2f"),
            _format(each["mfu"], ".1%"),
            _format(each["peak_memory_bytes"] and each["peak_memory_bytes"] / 1e9, ".1f"),
            _format(each.get("attention_milliseconds"), ".2f"),
            _format(each["attention_share_by_subtraction"], ".1%"),
            _format(each["graph_breaks"], "d"),
        )
    table.caption = (
        "GB: peak memory; kernels: fused attention's, a step; share: attention's of the step, by none-compile"
    )
    console.print(table)
    for line in verdicts(size, records):
        console.print(line, highlight=False)


def _format(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Speeds and loss curves of every size, as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sizes = list(dict.fromkeys(each["size"] for each in records))
    jobs = dict.fromkeys(each["implementation"] for each in records)
    colours = {name: f"C{index % 10}" for index, name in enumerate(jobs)}
    figure = Figure(figsize=(12, 3.8 * len(sizes)), layout="constrained")
    FigureCanvasAgg(figure)
    for panels, size in zip(figure.subplots(len(sizes), 2, squeeze=False), sizes, strict=True):
        shown = [each for each in records if each["size"] == size and "ratios" in each]
        names = [each["implementation"] for each in shown]
        bars = panels[0].barh(
            names, [each["tokens_per_second"] for each in shown], color=[colours[name] for name in names]
        )
        panels[0].bar_label(bars, fmt="{:,.0f}", padding=3)
        panels[0].invert_yaxis()
        panels[0].margins(x=0.25)
        panels[0].locator_params(axis="x", nbins=5)
        panels[0].set(title=f"GPT-2 {size}, {shown[0]['device'] if shown else ''}", xlabel="tokens/s")
        for each in shown:
            if each["losses"]:
                panels[1].plot(
                    each["losses"],
                    label=each["implementation"],
                    color=colours[each["implementation"]],
                    linewidth=1,
                )
        panels[1].set(title="same batches, same seed", xlabel="step", ylabel="training loss")
        if any(each["losses"] for each in shown):
            panels[1].legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
