"""Draws kernels under their device's roof: FLOP/s over FLOP a byte, with the ceilings of HBM, L2 and cores.

Where a time was measured, a point is what was attained; elsewhere it lies on the roof and says "at best".
Filled points have their bytes measured, hollow ones counted or modelled.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from math import atan2, degrees, log10
from typing import TYPE_CHECKING

from lit_eff.profiling.devices import Device
from lit_eff.profiling.titles import titles
from lit_eff.profiling.traffic import BEST, KernelTraffic, Number, Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 24  # points that a plot still tells apart
UNKNOWN_DTYPE = "float16"
PEAK_NAMES = {
    "float8": "tensor cores, 8 bits",
    "bfloat16": "tensor cores, bf16 and fp16",
    "tf32": "tensor cores, TF32",
    "float32": "CUDA cores, float32",
}
MARKERS = {"forward": "o", "backward": "s", "forward and backward": "D"}
COLOURS = ("tab:blue", "tab:green", "tab:red", "tab:purple", "tab:orange", "tab:brown", "tab:olive")
# Where a label may stand from its point, in points of the page: the first that is free.
_OFFSETS = ((0, 10), (11, 0), (-11, 0), (0, -11), (10, 10), (-10, 10), (10, -10), (-10, -10), (0, 20))
_APART = 9.0  # points between the centres of two labels


@dataclass(frozen=True)
class Point:
    """A kernel under the roof. ``flops_a_second`` is attained if ``timed``, else what the roof allows."""

    title: str
    phase: str
    intensity: float
    flops_a_second: float
    timed: bool
    bytes_source: Source

    @property
    def legend(self) -> str:
        speed = f"{self.flops_a_second / 1e12:.3g} TFLOP/s {'measured' if self.timed else 'at best'}"
        return f"{self.title}: {speed}, bytes {self.bytes_source}"


def roofline_points(records: Sequence[KernelTraffic], device: Device) -> list[Point]:
    """Records, and their baselines, whose FLOPs and HBM bytes are known, in order."""
    baselines = [record.baseline for record in records if record.baseline is not None]
    distinct: dict[tuple[str, str], KernelTraffic] = {}
    for record in (*records, *baselines):
        distinct.setdefault((record.kernel, repr(record.shape)), record)
    shown = list(distinct.values())
    points = []
    for record, title in zip(shown, titles(shown), strict=True):
        flops, known = _flops(record), record.best_hbm_bytes
        if not flops or known is None or not known[0]:
            continue
        intensity = flops / known[0]
        seconds = record.get("seconds", "measured")
        peak = device.peaks.get(str(record.shape.get("dtype", UNKNOWN_DTYPE)), device.peaks[UNKNOWN_DTYPE])
        roof = min(peak, intensity * device.hbm_bandwidth)
        speed = flops / seconds if seconds else roof
        points.append(Point(title, phase_of(record.kernel), intensity, speed, bool(seconds), known[1]))
    return points


def phase_of(kernel: str) -> str:
    """Of training, as a kernel's name tells it."""
    backward = any(word in kernel for word in ("backward", "gradient"))
    if backward and "forward" in kernel:
        return "forward and backward"
    return "backward" if backward else "forward"


def roofline_figure(
    records: Sequence[KernelTraffic], device: Device, l2_bandwidth: Number | None = None
) -> Figure | None:
    """The plot; None if no record knows both its FLOPs and its bytes.

    Args:
        records: their shape's ``dtype`` chooses the roof; 16-bit tensor cores where there is none.
        device: its peaks and its HBM's bandwidth.
        l2_bandwidth: bytes a second, with its source; None leaves that ceiling out, which the plot says.
    """
    from matplotlib.figure import Figure

    points = roofline_points(records, device)
    if not points:
        return None
    left_out = len(points) - MOST
    points = sorted(points, key=lambda point: point.intensity)
    if left_out > 0:
        points = [points[round(i * (len(points) - 1) / (MOST - 1))] for i in range(MOST)]
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    axes, beside = figure.subplots(1, 2, width_ratios=(3, 2))
    ridge = device.peaks[UNKNOWN_DTYPE] / device.hbm_bandwidth
    low = min(1.0, *(point.intensity for point in points)) / 12
    high = 50 * max(ridge, *(point.intensity for point in points))  # room for the peaks' names
    floor = min(low * device.hbm_bandwidth, *(point.flops_a_second for point in points)) / 2
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(floor, 3 * max(device.peaks.values())))
    axes.set(xlabel="FLOP a byte of HBM traffic", ylabel="FLOP/s")
    axes.set_title(f"Roofline on {device.name}", fontsize=11, loc="left")
    beside.axis("off")
    figure.draw_without_rendering()  # lays it out: where labels go depends on it
    _ceilings(axes, device, l2_bandwidth)
    _draw(axes, points)
    beside.text(0, 1, _key(points, left_out, l2_bandwidth), va="top", fontsize=8, transform=beside.transAxes)
    return figure


def _flops(record: KernelTraffic) -> float | int | None:
    return next((value for source in BEST if (value := record.get("flops", source))), None)


def _ceilings(axes: Axes, device: Device, l2_bandwidth: Number | None) -> None:
    low, high = axes.get_xlim()
    peaks = {name: device.peaks[dtype] for dtype, name in PEAK_NAMES.items() if dtype in device.peaks}
    slopes = {f"HBM, {device.hbm_bandwidth / 1e12:.2f} TB/s": device.hbm_bandwidth}
    if l2_bandwidth is not None and l2_bandwidth.value:
        name = f"L2, {l2_bandwidth.value / 1e12:.2f} TB/s ({l2_bandwidth.source})"
        slopes[name] = float(l2_bandwidth.value)
    top = max(peaks.values())
    for (style, above), (name, bandwidth) in zip((("-", -13), ("--", 5)), slopes.items(), strict=False):
        ridge = top / bandwidth
        axes.plot((low, ridge), (low * bandwidth, top), style, color="dimgrey", lw=1.4)
        axes.annotate(
            name,
            (low * 1.3, low * 1.3 * bandwidth),
            xytext=(0, above),
            textcoords="offset points",
            rotation=_angle(axes),
            rotation_mode="anchor",
            fontsize=8,
            color="dimgrey",
        )
    for name, peak in peaks.items():
        axes.plot((peak / max(slopes.values()), high), (peak, peak), color="silver", lw=1.2)
        axes.text(
            high * 0.9,
            peak * 1.05,
            f"{name}, {peak / 1e12:,.4g} TFLOP/s",
            ha="right",
            va="bottom",
            fontsize=7.5,
        )


def _angle(axes: Axes) -> float:
    """Degrees that a line of slope 1 makes on the logarithmic page."""
    (low, high), (floor, top) = axes.get_xlim(), axes.get_ylim()
    box = axes.get_window_extent()
    return degrees(atan2(box.height / log10(top / floor), box.width / log10(high / low)))


def _draw(axes: Axes, points: Sequence[Point]) -> None:
    from matplotlib.lines import Line2D

    placed: list[tuple[float, float]] = []
    scale = 72 / axes.figure.dpi
    for number, point in enumerate(points, start=1):
        colour = COLOURS[(number - 1) % len(COLOURS)]
        filled = point.bytes_source == "measured"
        axes.plot(
            point.intensity,
            point.flops_a_second,
            MARKERS[point.phase],
            color=colour,
            markerfacecolor=colour if filled else "white",
            ms=6.5,
            alpha=1.0 if point.timed else 0.75,
        )
        x, y = axes.transData.transform((point.intensity, point.flops_a_second)) * scale
        offset = next(
            (each for each in _OFFSETS if _free((x + each[0], y + each[1]), placed)),
            (0, 10 + 10 * number % 40),
        )
        placed.append((x + offset[0], y + offset[1]))
        axes.annotate(
            str(number),
            (point.intensity, point.flops_a_second),
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7.5,
            color=colour,
        )
    phases = [phase for phase in MARKERS if any(point.phase == phase for point in points)]
    handles = [Line2D([], [], ls="", marker=MARKERS[phase], color="dimgrey", label=phase) for phase in phases]
    axes.legend(handles=handles, loc="lower right", fontsize=8, frameon=False)


def _free(place: tuple[float, float], placed: Sequence[tuple[float, float]]) -> bool:
    return all((place[0] - x) ** 2 + (place[1] - y) ** 2 >= _APART**2 for x, y in placed)


def _key(points: Sequence[Point], left_out: int, l2_bandwidth: Number | None) -> str:
    lines = [
        textwrap.fill(f"{number:2}  {point.legend}", 74, subsequent_indent="      ")
        for number, point in enumerate(points, start=1)
    ]
    lines += [
        "",
        "filled: bytes measured; hollow: counted or modelled",
        "at best: no time measured, on the roof",
    ]
    if l2_bandwidth is None or l2_bandwidth.value is None:
        why = l2_bandwidth.detail if l2_bandwidth is not None else "no vendor figure, none measured"
        lines.append(f"L2's ceiling is left out: {why}")
    if left_out > 0:
        lines.append(f"{left_out} points between these are left out")
    return "\n".join(lines)
