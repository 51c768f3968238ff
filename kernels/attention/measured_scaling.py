"""How the flash forward's traffic grows with N, d and M: the Triton kernel's, modelled beside measured.

Theorem 2 of Dao et al. 2022 bounds HBM accesses by Theta(N^2 d^2 / M) for an on-chip memory of M elements.
The paper's B_c = M / 4d is the block that stays on chip while others stream past; in this loop order it is
the rows of queries that a program owns, so M = 4 d B_r. The kernel's requests follow the theorem; L2 serves
them, and DRAM sees only what L2 cannot hold: on a GPU with a large L2 its bytes grow far more slowly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lit_eff.kernels.attention.figure2 import Case
from lit_eff.kernels.attention.figure2_records import Profiler, tile_records
from lit_eff.kernels.attention.tiles import Tiles
from lit_eff.profiling.report import ReportTable
from lit_eff.profiling.traffic import KernelTraffic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What the theorem says of each, the other two fixed.
EXPONENTS: Mapping[str, int] = {"N": 2, "d": 2, "M": -1}


def _tiles(rows: int) -> Tiles:
    return Tiles(rows, 64, num_warps=4, num_stages=2)


# Values of each variable, with the case and tiles that have them.
POINTS: Mapping[str, Sequence[tuple[int, Case, Tiles]]] = {
    "N": [
        (length, Case(max(1, 64 * 1024**2 // length**2), length), _tiles(64))
        for length in (1024, 2048, 4096, 8192, 16384)
    ],
    "d": [(dim, Case(4, 4096, head_dim=dim), _tiles(4096 // dim)) for dim in (32, 64, 128)],
    "M": [(4 * 64 * rows, Case(4, 4096), _tiles(rows)) for rows in (16, 32, 64, 128)],
}
QUANTITIES = ("requested (modelled)", "L2 (measured)", "DRAM (measured)")


@dataclass(frozen=True)
class Scaling:
    """Bytes of one head's forward over one variable; ``bytes`` by quantity, None where unavailable."""

    variable: str
    values: tuple[int, ...]
    bytes: Mapping[str, tuple[float | None, ...]]

    def slope(self, quantity: str) -> float | None:
        """Exponent of a least-squares fit on logarithms."""
        values = self.bytes[quantity]
        if None in values:
            return None
        logs = np.log(np.array([float(value or 0) for value in values]))
        return float(np.polyfit(np.log(np.array(self.values, float)), logs, 1)[0])


def measure_scaling(profiler: Profiler | None = None) -> list[Scaling]:
    """One for each of N, d and M."""
    cases = [(case, tiles) for points in POINTS.values() for _, case, tiles in points]
    records = iter(tile_records(cases, profiler=profiler))
    found = []
    for variable, points in POINTS.items():
        mine = [(next(records), case.batch * case.heads) for _, case, _ in points]
        a_head = {
            quantity: tuple(
                None if (total := _bytes(record, quantity)) is None else total / heads
                for record, heads in mine
            )
            for quantity in QUANTITIES
        }
        found.append(Scaling(variable, tuple(value for value, _, _ in points), a_head))
    return found


def _bytes(record: KernelTraffic, quantity: str) -> float | None:
    if quantity.startswith("L2"):
        return record.get("l2_bytes", "measured")
    return record.hbm_bytes("measured" if quantity.startswith("DRAM") else "modelled")


def scaling_table(found: Sequence[Scaling]) -> ReportTable:
    """Exponents: the theorem's, and fitted."""
    rows = []
    for each in found:
        slopes = (each.slope(quantity) for quantity in QUANTITIES)
        rounded = [None if slope is None else round(slope, 2) for slope in slopes]
        values = f"{each.values[0]:,} to {each.values[-1]:,}"
        rows.append((each.variable, values, float(EXPONENTS[each.variable]), *rounded))
    return ReportTable(
        "Exponents of the flash forward's traffic",
        "Bytes of one head's forward as a power of N, d (M fixed) and M (elements on chip, 4 d B_r), fitted "
        "on logarithms. What L2 serves never reaches DRAM, so DRAM's bytes grow more slowly.",
        ("variable", "values", "theorem", *QUANTITIES),
        tuple(rows),
    )


def scaling_figure(found: Sequence[Scaling]) -> Figure:
    """A log-log panel for each variable, with the theorem's slope dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    styles = dict(zip(QUANTITIES, ("s-", "^-", "o-"), strict=True))
    for axes, each in zip(figure.subplots(1, len(found)), found, strict=True):
        x = np.array(each.values, float)
        for quantity, values in each.bytes.items():
            if None not in values:
                slope = each.slope(quantity)
                axes.plot(x, values, styles[quantity], label=f"{quantity}, slope {slope:.2f}", ms=4)
        first = each.bytes[QUANTITIES[0]][0] or 0
        exponent = EXPONENTS[each.variable]
        axes.plot(
            x, 0.5 * first * (x / x[0]) ** exponent, "--", color="grey", label=f"theorem, slope {exponent}"
        )
        axes.set(xscale="log", yscale="log", xlabel=each.variable, ylabel="bytes a head")
        axes.set_title(f"flash forward's traffic over {each.variable}", fontsize=10)
        axes.legend(fontsize=7)
    return figure
