"""Block sizes against what they cost: bytes of HBM, SRAM of a program, and programs on an SM.

What FlashAttention's figure 2 (middle) shows for one kernel and one GPU, for any kernel that can say what a
pair of block sizes costs: larger blocks move fewer bytes until they no longer fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lit_eff.profiling.devices import Device
from lit_eff.profiling.occupancy import by_shared_memory
from lit_eff.profiling.report import ReportTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Blocks = tuple[int, int]  # block_m (the papers' B_r), block_n (B_c)


@dataclass(frozen=True)
class TileCost:
    """Modelled: bytes requested of HBM by the whole operation, bytes of SRAM that one program takes."""

    hbm_bytes: int
    sram_bytes: int


@dataclass(frozen=True)
class Explored:
    """A kernel's costs at many block sizes on one device.

    ``curves`` are other loop orders, each by the size of its outer block; ``levels`` are bytes that do not
    depend on blocks, such as standard attention's. ``outer`` is the axis of the blocks (0: block_m) that
    stay in SRAM while the others pass; ``shipped`` the block sizes that the kernel really has.
    """

    name: str
    device: Device
    costs: Mapping[Blocks, TileCost]
    outer: int = 0
    shipped: Blocks | None = None
    curves: Mapping[str, Mapping[int, TileCost]] = field(default_factory=dict)
    levels: Mapping[str, int] = field(default_factory=dict)

    def programs_per_sm(self, cost: TileCost) -> int:
        """That SRAM alone allows; 0: the device cannot run it."""
        return by_shared_memory(self.device, cost.sram_bytes)

    def best_by_outer(self) -> dict[int, TileCost]:
        """For each size of the outer block the cheapest cost, of those that fit if any does."""
        by_size: dict[int, list[TileCost]] = {}
        for blocks, cost in self.costs.items():
            by_size.setdefault(blocks[self.outer], []).append(cost)
        return {
            size: min(
                costs, key=lambda cost: (not self.programs_per_sm(cost), cost.hbm_bytes, cost.sram_bytes)
            )
            for size, costs in sorted(by_size.items())
        }


def explore(
    cost: Callable[[int, int], TileCost], block_m: Sequence[int], block_n: Sequence[int]
) -> dict[Blocks, TileCost]:
    """``cost`` of every pair of block sizes."""
    return {(m, n): cost(m, n) for m in block_m for n in block_n}


def tile_table(explored: Explored) -> ReportTable:
    """A row a pair of block sizes."""
    rows = [
        (
            *blocks,
            cost.hbm_bytes,
            cost.sram_bytes,
            explored.programs_per_sm(cost) or "does not fit",
            "shipped" if blocks == explored.shipped else None,
        )
        for blocks, cost in sorted(explored.costs.items())
    ]
    return ReportTable(
        f"Block sizes of {explored.name}",
        f"HBM bytes requested and SRAM bytes of a program, both modelled, on {explored.device.name}: "
        f"{explored.device.shared_memory_per_block:,} bytes of SRAM for a program; programs on an SM as SRAM "
        "alone allows.",
        ("block_m", "block_n", "HBM bytes", "SRAM bytes", "programs an SM", "note"),
        tuple(rows),
    )


def tile_figure(explored: Explored) -> Figure:
    """Left: HBM bytes over both block sizes, hatched where they do not fit. Right: over the outer block."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    grid, line = figure.subplots(1, 2)
    _heat_map(grid, explored)
    _curves(line, explored)
    figure.suptitle(f"{explored.name}, modelled for {explored.device.name}")
    return figure


def _heat_map(axes: Axes, explored: Explored) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    rows, columns = (sorted({blocks[axis] for blocks in explored.costs}) for axis in (0, 1))
    values = [[explored.costs[m, n].hbm_bytes / 1e9 for n in columns] for m in rows]
    image = axes.imshow(values, norm=LogNorm(), cmap="viridis_r", origin="lower", aspect="auto")
    low, high = min(map(min, values)), max(map(max, values))
    for y, m in enumerate(rows):
        for x, n in enumerate(columns):
            cost, corner = explored.costs[m, n], (x - 0.5, y - 0.5)
            programs = explored.programs_per_sm(cost)
            if not programs:
                axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="////", edgecolor="white", lw=0))
            if (m, n) == explored.shipped:
                axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="red", lw=2.5, zorder=3))
            dark = values[y][x] ** 2 > low * high
            boxed = {"facecolor": "white", "edgecolor": "none", "pad": 1.5} if not programs else None
            axes.text(
                x,
                y,
                f"{cost.sram_bytes / 1024:.0f} KiB\n{f'{programs} an SM' if programs else 'no fit'}",
                color="white" if dark and programs else "black",
                ha="center",
                va="center",
                fontsize=7.5,
                bbox=boxed,
            )
    axes.set_xticks(range(len(columns)), map(str, columns))
    axes.set_yticks(range(len(rows)), map(str, rows))
    axes.set_xlabel("block_n (B_c), keys")
    axes.set_ylabel("block_m (B_r), queries")
    shipped = "; red: as shipped" if explored.shipped in explored.costs else ""
    axes.set_title(f"SRAM of a program, programs an SM{shipped}", fontsize=10)
    axes.figure.colorbar(image, ax=axes, label="HBM, GB")


def _curves(axes: Axes, explored: Explored) -> None:
    """Hollow where the blocks do not fit."""
    own = f"{explored.name}, outer {('block_m', 'block_n')[explored.outer]}"
    sizes: set[int] = set()
    curves = {own: explored.best_by_outer(), **explored.curves}
    for number, (name, curve) in enumerate(curves.items()):
        color, blocks = f"C{number}", list(curve)
        gigabytes = [cost.hbm_bytes / 1e9 for cost in curve.values()]
        axes.plot(blocks, gigabytes, color=color, label=name)
        faces = [color if explored.programs_per_sm(cost) else "white" for cost in curve.values()]
        axes.scatter(blocks, gigabytes, facecolors=faces, edgecolors=color, zorder=3)
        sizes.update(blocks)
    for name, value in explored.levels.items():
        axes.axhline(value / 1e9, color="tab:red", ls="--", label=name)
    axes.plot([], [], "o", mfc="white", mec="black", ls="", label="does not fit in SRAM")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted(sizes), map(str, sorted(sizes)))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_xlabel("size of the outer block")
    axes.set_ylabel("HBM, GB")
    axes.set_title("Larger blocks move fewer bytes, until they do not fit", fontsize=10)
    axes.legend(fontsize=8)
