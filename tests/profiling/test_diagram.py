"""Pictures of tile schedules: every byte is on its arrow, arrows are to scale, and no text covers another."""

from __future__ import annotations

from itertools import combinations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lit_eff.profiling.diagram import KernelSchedule, Tensor, TileSchedule, schedule_figure


def assert_no_text_covers_another(figure: Figure) -> None:
    """As drawn, each text, title and label keeps to its own place, and within the figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [text for axes in figure.axes for text in axes.texts if text.get_text()]
    texts += [each for axes in figure.axes for each in (axes.title, axes._left_title, axes._right_title)]
    boxes = {text: text.get_window_extent(renderer) for text in texts if text.get_text()}
    for one, other in combinations(boxes, 2):
        assert not boxes[one].overlaps(boxes[other]), (one.get_text(), other.get_text())
    width, height = canvas.get_width_height()
    for text, box in boxes.items():
        assert box.x0 >= 0, text.get_text()
        assert box.y0 >= 0, text.get_text()
        assert box.x1 <= width, text.get_text()
        assert box.y1 <= height, text.get_text()


@pytest.fixture
def schedule() -> TileSchedule:
    """Two kernels: the first reads A twice and writes B, the second reads B and writes C."""
    tensors = {name: Tensor("10 x 100", 1000) for name in "ABC"}
    first = KernelSchedule("first", {"A": 2000}, {"B": 1000}, ("for each row",), "a row")
    second = KernelSchedule("second", {"B": 1000}, {"C": 1000}, (), "nothing")
    return TileSchedule("Toy", tensors, (first, second))


def test_every_transfer_is_an_arrow_with_its_bytes(schedule: TileSchedule) -> None:
    figure = schedule_figure([schedule], "a toy")
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "Toy: 5 kB between HBM and SRAM"
    arrows = [text for text in axes.texts if getattr(text, "arrow_patch", None) is not None]
    ways = {round(float(arrow.xy[0]), 3): arrow.xy[1] > arrow.xyann[1] for arrow in arrows}
    # A in the middle of its third, the two of B at a quarter and three quarters of its own, C in the middle.
    assert ways == {0.167: False, 0.417: True, 0.583: False, 0.833: True}
    labels = {text.get_text() for text in axes.texts}
    assert {"2 kB\n2 times", "1 kB"} <= labels
    assert_no_text_covers_another(figure)


def test_arrows_are_as_wide_as_their_bytes(schedule: TileSchedule) -> None:
    (axes,) = schedule_figure([schedule]).axes
    widths = [
        text.arrow_patch.get_arrowstyle().tail_width
        for text in axes.texts
        if getattr(text, "arrow_patch", None) is not None
    ]
    assert sorted(widths) == [13, 13, 13, 26]
