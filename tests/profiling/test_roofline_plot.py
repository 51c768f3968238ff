"""Points under the roof by hand, and what the plot says of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lit_eff.profiling.devices import get_device
from lit_eff.profiling.roofline_plot import MOST, phase_of, roofline_figure, roofline_points
from lit_eff.profiling.traffic import KernelTraffic, Number
from tests.profiling.sample_run import record

H100 = get_device("H100 SXM")


def test_without_time_a_point_lies_on_the_roof_at_best() -> None:
    """8,000 FLOP on 1,000 bytes: 8 FLOP a byte, far left of the ridge at 989.4 / 3.35 = 295."""
    (point,) = roofline_points([record()], H100)
    assert point.intensity == 8
    assert point.flops_a_second == pytest.approx(8 * 3.35e12)
    assert not point.timed
    assert point.bytes_source == "counted"
    assert "26.8 TFLOP/s at best, bytes counted" in point.legend


def test_the_roof_is_the_dtypes() -> None:
    """At 10,000 FLOP a byte arithmetic bounds everything: CUDA cores float32, tensor cores 16 bits."""
    heavy = {"flops": (Number(10_000_000, "modelled"),)}
    both = [
        replace(record(), shape={"dtype": dtype}, numbers={**record().numbers, **heavy})
        for dtype in ("float16", "float32")
    ]
    speeds = [point.flops_a_second for point in roofline_points(both, H100)]
    assert speeds == pytest.approx([989.4e12, 66.9e12])


def test_with_time_it_is_what_was_attained() -> None:
    measured = {
        "dram_read_bytes": Number(300, "measured"),
        "dram_written_bytes": Number(100, "measured"),
        "seconds": Number(2e-9, "measured"),
    }
    (point,) = roofline_points([record(**measured)], H100)
    assert (point.intensity, point.flops_a_second) == (20, pytest.approx(4e12))
    assert point.timed
    assert point.legend.endswith("4 TFLOP/s measured, bytes measured")


def test_baselines_stand_beside_and_once() -> None:
    standard = record("standard_forward")
    records = [replace(record(length=n), baseline=standard) for n in (1024, 2048)]
    names = [point.title for point in roofline_points(records, H100)]
    assert names == [
        "flash_forward_kernel (length 1024)",
        "flash_forward_kernel (length 2048)",
        "standard_forward",
    ]


@pytest.mark.parametrize(
    ("kernel", "phase"),
    [
        ("swiglu_forward_kernel", "forward"),
        ("attention_key_gradient_kernel", "backward"),
        ("norm_backward_kernel", "backward"),
        ("flash: forward and backward", "forward and backward"),
        ("argmax_kernel", "forward"),
    ],
)
def test_phases_by_name(kernel: str, phase: str) -> None:
    assert phase_of(kernel) == phase


def test_plot_has_ceilings_points_and_labels_apart() -> None:
    measured = {"dram_read_bytes": Number(800, "measured"), "dram_written_bytes": Number(200, "measured")}
    records = [record(f"kernel {i}") for i in range(6)] + [record("kernel m", **measured)]
    figure = roofline_figure(records, H100, Number(5.5e12, "measured", "copies within L2"))
    assert figure is not None
    figure.canvas.draw()
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    lines = {tuple(np.round(np.diff(np.log10(np.array(line.get_data()))), 6).ravel()) for line in axes.lines}
    assert any(dx == dy > 0 for dx, dy in (each for each in lines if len(each) == 2))  # slopes of 1
    slopes = [line.get_ydata()[0] / line.get_xdata()[0] for line in axes.lines if line.get_ydata()[0] < 1e13]
    assert {round(slope / 1e9) for slope in slopes if slope > 3e12} >= {3350, 5500}
    words = [text.get_text() for text in axes.texts]
    for expected in ("HBM, 3.35 TB/s", "L2, 5.50 TB/s (measured)", "CUDA cores, float32, 66.9 TFLOP/s"):
        assert expected in words
    markers = [line for line in axes.lines if line.get_marker() not in ("None", "", None)]
    assert len(markers) == 7
    hollow = [line.get_markerfacecolor() == "white" for line in markers]
    assert hollow == [True] * 6 + [False]
    labels = [text.get_window_extent() for text in axes.texts if text.get_text().isdigit()]
    assert len(labels) == 7  # all points at one place
    overlaps = [a.overlaps(b) for i, a in enumerate(labels) for b in labels[:i]]
    assert not any(overlaps)


def test_plot_says_what_it_leaves_out() -> None:
    figure = roofline_figure([record(f"kernel {i}") for i in range(MOST + 5)], H100)
    assert figure is not None
    key = figure.axes[1].texts[0].get_text()
    assert "L2's ceiling is left out: no vendor figure, none measured" in key
    assert "5 points between these are left out" in key
    assert roofline_figure([KernelTraffic("unknown", {})], H100) is None
