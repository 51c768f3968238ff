"""Figure 2 drawn and tabled from its records: bytes and time of a step, and how both grow with length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lit_eff.kernels.attention.figure2 import PAPER, PAPER_GFLOPS, PAPER_RATIOS
from lit_eff.profiling.report import ReportTable
from lit_eff.profiling.traffic import KernelTraffic, Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "standard": "tab:red",
    "flash": "tab:green",
    "flash in Triton": "tab:olive",
    "SDPA flash": "tab:blue",
    "SDPA cuDNN": "tab:purple",
    "standard, dropout": "lightcoral",
    "flash, dropout": "yellowgreen",
}
CAPTION = (
    "Forward and backward. Model: bytes requested, by formula; DRAM and L2: bytes moved, measured by ncu, "
    "each kernel from cold caches; ms: measured by CUDA events. Ratios are to standard attention (with "
    "dropout, to standard with dropout), of bytes measured where they were. Dao et al. 2022 (A100, N 1,024): "
    f"{PAPER['standard'][0]} GB and {PAPER['standard'][1]} ms against {PAPER['flash'][0]} GB and "
    f"{PAPER['flash'][1]} ms, {PAPER_RATIOS['hbm']}x and {PAPER_RATIOS['time']}x. Its printed "
    f"{PAPER_GFLOPS['standard']} and {PAPER_GFLOPS['flash']} GFLOP do not fit that workload, whose matrix "
    "products alone are 825 and 962, so they are not compared."
)


def contender_of(record: KernelTraffic) -> str:
    return record.kernel.rpartition(":")[0]


def figure2_table(records: Sequence[KernelTraffic]) -> ReportTable:
    """A row a contender and length: bytes by every source, time, and ratios to standard attention."""
    columns = ("N", "batch", "attention", "model GB", "DRAM GB", "L2 GB", "ms", "fewer bytes", "faster")
    rows = [
        (
            _size(record, "length"),
            _size(record, "batch"),
            contender_of(record),
            _scaled(record.hbm_bytes("modelled"), 1e9),
            _scaled(record.hbm_bytes("measured"), 1e9),
            _scaled(record.get("l2_bytes", "measured"), 1e9),
            _scaled(record.get("seconds", "measured"), 1e-3),
            _rounded(record.baseline_ratio),
            _rounded(speed_ratio(record)),
        )
        for record in records
    ]
    return ReportTable("Figure 2: attention's bytes and time", CAPTION, columns, tuple(rows))


def speed_ratio(record: KernelTraffic) -> float | None:
    """Standard attention's time over this one's."""
    own = record.get("seconds", "measured")
    other = record.baseline.get("seconds", "measured") if record.baseline is not None else None
    return other / own if own and other else None


def _size(record: KernelTraffic, name: str) -> int:
    return int(record.shape[name])


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else round(value / unit, 3)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def figure2_figure(records: Sequence[KernelTraffic]) -> Figure:
    """Bytes and time at the shortest length beside the paper's, and bytes a head over the length."""
    from matplotlib.figure import Figure

    shortest = min(_size(record, "length") for record in records)
    first = [record for record in records if _size(record, "length") == shortest]
    measured = any(record.get("seconds", "measured") for record in first)
    figure = Figure(figsize=(16 if measured else 11, 4.4), layout="constrained")
    panels = figure.subplots(1, 3 if measured else 2)
    source: Source = "measured" if any(record.hbm_bytes("measured") for record in first) else "modelled"
    _bars(
        panels[0],
        {contender_of(record): (record.hbm_bytes(source) or 0) / 1e9 for record in first},
        f"HBM traffic at N {shortest:,}, GB ({source})",
        {name: figures[0] for name, figures in PAPER.items()},
    )
    if measured:
        _bars(
            panels[1],
            {contender_of(record): (record.get("seconds", "measured") or 0) * 1e3 for record in first},
            f"time at N {shortest:,}, ms (measured)",
            {name: figures[1] for name, figures in PAPER.items()},
        )
    _growth(panels[-1], records)
    return figure


def _bars(axes: Axes, values: dict[str, float], title: str, paper: dict[str, float]) -> None:
    values = {name: value for name, value in values.items() if value}
    names = [*values, *(f"{name}, paper (A100)" for name in paper)]
    heights = [*values.values(), *paper.values()]
    colours = [COLOURS[name] for name in values] + ["lightgrey"] * len(paper)
    axes.bar_label(axes.barh(names, heights, color=colours), fmt="{:,.1f}", padding=2)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10)
    axes.margins(x=0.15)


def _growth(axes: Axes, records: Sequence[KernelTraffic]) -> None:
    """Bytes a head over N, by source, with the slope of a log-log fit."""
    for contender in dict.fromkeys(map(contender_of, records)):
        mine = [record for record in records if contender_of(record) == contender]
        series: dict[tuple[str, str], list[float | None]] = {
            ("requested", "--"): [record.hbm_bytes("modelled") for record in mine],
            ("DRAM", "o-"): [record.hbm_bytes("measured") for record in mine],
            ("L2", "^:"): [record.get("l2_bytes", "measured") for record in mine],
        }
        for (name, style), values in series.items():
            points = [
                (_size(record, "length"), value / (_size(record, "batch") * _size(record, "heads")))
                for record, value in zip(mine, values, strict=True)
                if value
            ]
            if not points:
                continue
            lengths, a_head = (np.array(each, float) for each in zip(*points, strict=True))
            slope = f", slope {log_slope(lengths, a_head):.2f}" if len(points) > 1 else ""
            axes.plot(
                lengths, a_head, style, color=COLOURS[contender], label=f"{contender}, {name}{slope}", ms=4
            )
    axes.set(xscale="log", yscale="log", xlabel="N, tokens", ylabel="bytes a head")
    axes.set_title("bytes of one head, forward and backward", fontsize=10)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def log_slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Exponent p of the least-squares fit of y = c x^p on logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
