"""A picture of the measurements: one panel of bars a section and quantity, with the ceiling as a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_eff.bench.report import unique
from lit_eff.bench.results import Measurement
from lit_eff.files import atomic_path

# Ours are red to yellow; peers are not.
PEER_COLORS = ("tab:blue", "tab:green", "tab:purple", "tab:brown", "tab:cyan", "tab:gray", "tab:olive")
MANY = 24  # cells whose names would run into one another on the slant
CEILINGS = {"TFLOP/s": "matmul_tflops", "GB/s": "read_gb_per_second"}


def plot(path: Path, head: dict[str, Any], measurements: Sequence[Measurement]) -> None:
    """Write the picture (the suffix tells its format)."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    ours = unique([each.contender for each in measurements if each.ours])
    peers = unique([each.contender for each in measurements if not each.ours])
    colors: dict[str, Any] = {name: colormaps["autumn"](i / len(ours)) for i, name in enumerate(ours)}
    colors |= {name: PEER_COLORS[i % len(PEER_COLORS)] for i, name in enumerate(peers)}
    panels = unique([f"{each.section}\n{each.quantity}" for each in measurements])
    figure = Figure(figsize=(15, 4 * len(panels)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        section, quantity = panel.split("\n")
        mine = [each for each in measurements if (each.section, each.quantity) == (section, quantity)]
        cells = unique([each.cell for each in mine])
        contenders = unique([each.contender for each in mine if each.rate])
        width = 0.85 / max(1, len(contenders))
        for index, name in enumerate(contenders):
            rates = {each.cell: each.rate or 0.0 for each in mine if each.contender == name and each.rate}
            middle = (index - (len(contenders) - 1) / 2) * width
            places = [cells.index(cell) + middle for cell in rates]
            axes.bar(places, list(rates.values()), width, label=name, color=colors[name])
        unit = mine[0].unit
        ceiling = head["ceilings"].get(CEILINGS.get(unit, ""))
        if ceiling:
            axes.axhline(ceiling, color="black", linestyle="--", linewidth=1)
            axes.annotate("ceiling of this run", (0.005, ceiling), (0, 3), xycoords=("axes fraction", "data"),
                          textcoords="offset points", fontsize=8)  # fmt: skip
        axes.set_ylim(top=1.08 * max(ceiling or 0.0, *(each.rate or 0.0 for each in mine)))
        axes.set_title(f"{section}, {quantity} ({unit}), {head['device']}")
        if len(cells) <= MANY:
            axes.set_xticks(range(len(cells)), cells, rotation=20, ha="right", fontsize=8)
        else:
            axes.set_xticks(range(len(cells)), cells, rotation=90, fontsize=7)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
