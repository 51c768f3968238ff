"""The lecture's attention speed table, published beside measured: GPT-2 training by attention.

Published: Dao et al. 2022, table 2, days on eight A100 to the same perplexity. Measured: tokens a second from
a result file of ``lit-eff bench gpt2_training``. Ratios are to Hugging Face's eager attention in both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_eff.bench.gpt2_report import EAGER
from lit_eff.errors import UserError
from lit_eff.profiling.report import ReportTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Published(NamedTuple):
    size: str
    implementation: str
    perplexity: float
    days: float


# Dao et al. 2022, table 2: 8x A100, 400k steps at the same hyperparameters.
PUBLISHED = (
    Published("small", "Hugging Face", 18.2, 9.5),
    Published("small", "Megatron-LM", 18.2, 4.7),
    Published("small", "FlashAttention", 18.2, 2.7),
    Published("medium", "Hugging Face", 14.2, 21.0),
    Published("medium", "Megatron-LM", 14.3, 11.5),
    Published("medium", "FlashAttention", 14.3, 6.9),
)
SHOWN = {  # of the jobs, with the names a reader knows
    EAGER: "Hugging Face, eager",
    "sdpa": "Hugging Face, SDPA",
    "sdpa-compile": "Hugging Face, SDPA, compiled",
    "lit_eff-compile": "ours as its attention, compiled",
}


def published_ratio(row: Published) -> float:
    """How many times as fast as Hugging Face."""
    (first,) = (each.days for each in PUBLISHED if each.size == row.size and each[1] == "Hugging Face")
    return first / row.days


def read_measured(path: Path) -> list[dict[str, Any]]:
    """The jobs of a result file that ran and are shown.

    Raises:
        UserError: there is no such file, or it holds none of them.
    """
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found = [each for each in records if each["implementation"] in SHOWN and "ratios" in each]
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}): write one with lit-eff bench gpt2_training --output"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a result file of `lit-eff bench gpt2_training`") from None
    if not any(EAGER in each["ratios"] for each in found):
        raise UserError(f"{path} has no job {EAGER!r}, which the others are held against")
    return found


def speed_table(measured: list[dict[str, Any]]) -> ReportTable:
    """A row an implementation and size: published days or measured tokens a second, and the ratio."""
    rows: list[tuple[str | float | None, ...]] = [
        (
            row.size,
            row.implementation,
            row.perplexity,
            row.days,
            None,
            round(published_ratio(row), 1),
            "published",
        )
        for row in PUBLISHED
    ]
    rows += [
        (
            each["size"],
            SHOWN[each["implementation"]],
            None,
            None,
            round(each["tokens_per_second"]),
            round(each["ratios"][EAGER], 2),
            "measured",
        )
        for each in measured
    ]
    rows.sort(key=lambda row: row[0] != "small")
    return ReportTable(
        "GPT-2 training speed by attention",
        "Times as fast as Hugging Face's eager attention. Published: Dao et al. 2022, table 2, on eight "
        f"A100; measured: on one {measured[0]['device']}.",
        ("GPT-2", "attention", "perplexity", "days", "tokens/s", "x eager", "source"),
        tuple(rows),
    )


def speed_figure(measured: list[dict[str, Any]]) -> Figure:
    """A panel a size: bars of the ratios, published grey, measured coloured."""
    from matplotlib.figure import Figure

    sizes = list(dict.fromkeys(row.size for row in PUBLISHED))
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    for axes, size in zip(figure.subplots(1, len(sizes), sharex=True), sizes, strict=True):
        _panel(axes, size, [each for each in measured if each["size"] == size])
    return figure


def _panel(axes: Axes, size: str, measured: list[dict[str, Any]]) -> None:
    published = [row for row in PUBLISHED if row.size == size]
    names = [f"{row.implementation} (2022, A100)" for row in published]
    names += [SHOWN[each["implementation"]] for each in measured]
    ratios = [published_ratio(row) for row in published] + [each["ratios"][EAGER] for each in measured]
    ours = ["tab:green" if each["implementation"].startswith("lit_eff") else "tab:blue" for each in measured]
    bars = axes.barh(names, ratios, color=["lightgrey"] * len(published) + ours)
    axes.bar_label(bars, fmt="%.1fx", padding=2)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    device = measured[0]["device"] if measured else "not measured"
    axes.set_title(f"GPT-2 {size}, times eager attention\nmeasured: {device}", fontsize=10)
