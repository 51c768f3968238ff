"""A kernel's tile schedule as a picture: which tensors cross between HBM and SRAM, how often, what stays.

Arrows are as wide as the bytes they carry, on one scale for all schedules of a figure, so that what goes to
HBM and back is seen at a glance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lit_eff.profiling.report import human_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HBM, SRAM = "#fdebd0", "#d6eaf8"
READ, WRITE = "#2471a3", "#c0392b"
TENSOR_Y, KERNEL_Y = (0.69, 0.92), (0.05, 0.37)  # bottom and top of the boxes
WIDEST = 26.0  # points


@dataclass(frozen=True)
class Tensor:
    """One tensor in HBM: its shape in words, and its size."""

    shape: str
    size_bytes: int


@dataclass(frozen=True)
class KernelSchedule:
    """One kernel: bytes that it requests of each tensor, its loops in order, and what stays in SRAM."""

    name: str
    reads: Mapping[str, int]
    writes: Mapping[str, int]
    loops: tuple[str, ...]
    stays: str

    def transfers(self) -> list[tuple[str, bool, int]]:
        """(tensor, whether it is a write, bytes)."""
        return [(name, False, size) for name, size in self.reads.items()] + [
            (name, True, size) for name, size in self.writes.items()
        ]

    @property
    def total(self) -> int:
        return sum(size for *_, size in self.transfers())


@dataclass(frozen=True)
class TileSchedule:
    """Kernels that make one result, in order.

    ``tensors`` stand from left to right; a kernel is drawn beneath those it touches, so the order should
    follow the kernels'.
    """

    title: str
    tensors: Mapping[str, Tensor]
    kernels: tuple[KernelSchedule, ...]

    @property
    def total(self) -> int:
        return sum(kernel.total for kernel in self.kernels)


def schedule_figure(schedules: Sequence[TileSchedule], title: str = "") -> Figure:
    """One schedule above the other: HBM with its tensors, SRAM with the kernels, arrows in between."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.3 * len(schedules) + 0.4), layout="constrained")
    panels = figure.subplots(len(schedules), 1, squeeze=False)[:, 0]
    largest = max(size for each in schedules for kernel in each.kernels for *_, size in kernel.transfers())
    for axes, schedule in zip(panels, schedules, strict=True):
        _panel(axes, schedule, largest)
    figure.suptitle(title)
    return figure


def _panel(axes: Axes, schedule: TileSchedule, largest: int) -> None:
    axes.set(xlim=(-0.09, 1), ylim=(0, 1))
    axes.set_axis_off()
    axes.set_title(
        f"{schedule.title}: {human_bytes(schedule.total)} between HBM and SRAM", loc="left", fontsize=12
    )
    axes.set_title("arrows as wide as their bytes: down read, up written", loc="right", fontsize=9)
    for (low, high), color, label in ((TENSOR_Y, HBM, "HBM"), (KERNEL_Y, SRAM, "SRAM")):
        axes.axhspan(low - 0.04, high + 0.05, color=color, zorder=0)
        axes.text(-0.075, (low + high) / 2, label, fontsize=12, fontweight="bold", ha="left", va="center")
    width = 1 / len(schedule.tensors)
    places = _places(schedule, width)
    for index, (name, tensor) in enumerate(schedule.tensors.items()):
        _box(axes, (index * width + 0.01, (index + 1) * width - 0.01), TENSOR_Y, "white")
        middle = (index + 0.5) * width
        text = f"{tensor.shape}\n{human_bytes(tensor.size_bytes)}"
        axes.text(middle, TENSOR_Y[1] - 0.025, name, fontsize=11, fontweight="bold", ha="center", va="top")
        axes.text(middle, TENSOR_Y[0] + 0.02, text, fontsize=8.5, ha="center", va="bottom")
    for number, kernel in enumerate(schedule.kernels):
        crossed = [
            (places[number, name, writes], name, writes, size) for name, writes, size in kernel.transfers()
        ]
        _kernel(axes, kernel, min(crossed)[0] - 0.2 * width, max(crossed)[0] + 0.2 * width)
        for x, name, writes, size in crossed:
            _arrow(axes, x, writes, size, largest, schedule.tensors[name].size_bytes)


def _places(schedule: TileSchedule, width: float) -> dict[tuple[int, str, bool], float]:
    """Where each arrow stands: beneath its tensor, which its arrows share in the order of the kernels."""
    arrows: dict[str, list[tuple[int, bool]]] = {name: [] for name in schedule.tensors}
    for number, kernel in enumerate(schedule.kernels):
        for name, writes, _ in kernel.transfers():
            arrows[name].append((number, writes))
    return {
        (number, name, writes): (index + (slot + 0.5) / len(arrows[name])) * width
        for index, name in enumerate(schedule.tensors)
        for slot, (number, writes) in enumerate(arrows[name])
    }


def _box(axes: Axes, across: tuple[float, float], up: tuple[float, float], color: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    size = (across[1] - across[0], up[1] - up[0])
    style = "round,pad=0,rounding_size=0.01"
    box = FancyBboxPatch((across[0], up[0]), *size, boxstyle=style, fc=color, ec="#555555", zorder=1)
    axes.add_patch(box)


def _kernel(axes: Axes, kernel: KernelSchedule, left: float, right: float) -> None:
    _box(axes, (left, right), KERNEL_Y, "white")
    middle, (low, high) = (left + right) / 2, KERNEL_Y
    axes.text(middle, high - 0.02, kernel.name, fontsize=10, fontweight="bold", ha="center", va="top")
    loops = "\n".join(kernel.loops)
    axes.text(middle, (low + high) / 2 - 0.01, loops, fontsize=9, ha="center", va="center")
    axes.text(middle, low + 0.02, kernel.stays, fontsize=9, style="italic", ha="center", va="bottom")


def _arrow(axes: Axes, x: float, writes: bool, size: int, largest: int, of: int) -> None:
    """Down for a read, up for a write, with its bytes, and how often the tensor crosses if not once."""
    top, bottom = TENSOR_Y[0] - 0.005, KERNEL_Y[1] + 0.005
    start, end = (bottom, top) if writes else (top, bottom)
    tail = max(1.5, WIDEST * size / largest)
    axes.annotate(
        "",
        xy=(x, end),
        xytext=(x, start),
        arrowprops={
            "arrowstyle": f"simple,tail_width={tail},head_width={1.3 * tail + 6},head_length=6",
            "color": WRITE if writes else READ,
            "mutation_scale": 1,  # so that the style's sizes are points
            "shrinkA": 0,
            "shrinkB": 0,
        },
        zorder=2,
    )
    times = size / of
    often = "" if abs(times - 1) < 0.01 else f"\n{times:.3g} times"
    axes.text(
        x,
        (top + bottom) / 2,
        f"{human_bytes(size)}{often}",
        fontsize=8.5,
        ha="center",
        va="center",
        zorder=3,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.9},
    )
