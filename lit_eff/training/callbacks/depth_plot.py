"""Quality against depth, as a picture in TensorBoard after every validation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from lit_eff.models.transformer import Transformer
from lit_eff.training.callbacks.tensorboard import say_if_off, summary_writer

TAG = "validation/quality_against_depth"
_NAME = re.compile(r"validation/(\w+)_exit_(\d+)$")
# What each curve says, in the order of the panels.
LABELS = {
    "perplexity": "perplexity",
    "accuracy": "accuracy",
    "agreement": "agreement with the last layer",
    "ece": "calibration error",
    "score_auroc": "AUROC of the exit classifier",
}


class DepthQualityPlot(Callback):
    """Draws ``validation/*_exit_LAYER`` against layers run, and charts each exit's curves together.

    The curves themselves are the LightningModule's scalars; this adds the picture, and a layout (the tab
    "Custom Scalars") with all exits of one measure in one chart.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            say_if_off(trainer, "Quality-against-depth plot")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        writer, model = summary_writer(trainer), pl_module.model
        assert isinstance(model, Transformer)
        if writer is not None:
            scored = model.config.exits.classifier
            charts = {
                label: ["Multiline", [rf"validation/{name}_exit_\d+"]]
                for name, label in LABELS.items()
                if scored or name != "score_auroc"
            }
            charts["training loss"] = ["Multiline", [r"train/loss_exit_\d+"]]
            writer.add_custom_scalars({"exits": charts})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        writer = summary_writer(trainer)
        curves = depth_curves(trainer.callback_metrics)
        if writer is None or trainer.sanity_checking or not curves:
            return
        title = f"step {trainer.global_step}"
        writer.add_image(TAG, draw(curves, title), trainer.global_step, dataformats="HWC")


def depth_curves(metrics: Mapping[str, Tensor | float]) -> dict[str, dict[int, float]]:
    """Measure -> layers run -> value, from logged names ``validation/MEASURE_exit_LAYER``."""
    curves: dict[str, dict[int, float]] = {}
    for name, value in metrics.items():
        match = _NAME.match(name)
        if match and match.group(1) in LABELS:
            curves.setdefault(match.group(1), {})[int(match.group(2))] = float(value)
    return {name: dict(sorted(curves[name].items())) for name in LABELS if name in curves}


def draw(curves: Mapping[str, Mapping[int, float]], title: str) -> NDArray[np.uint8]:
    """One panel a measure, values beside the points; uint8 (height, width, 3)."""
    # The figure and its canvas, not pyplot: no global state, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(curves), 3.2), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (name, curve) in zip(panels, curves.items(), strict=True):
        layers, values = list(curve), list(curve.values())
        panel.plot(layers, values, marker="o", color="tab:blue")
        for layer, value in curve.items():
            text = f"{value:.3g}"
            panel.annotate(
                text, (layer, value), textcoords="offset points", xytext=(0, 6), ha="center", size=8
            )
        # Within one decade a log axis has no round ticks to read.
        if name == "perplexity" and np.isfinite(values).all() and max(values) > 10 * min(values) > 0:
            panel.set_yscale("log")
        panel.set_xticks(layers)
        panel.set_xlabel("layers run")
        panel.set_ylabel(LABELS[name])
        panel.margins(x=0.15, y=0.2)
        panel.grid(alpha=0.3)
    figure.suptitle(title)
    canvas.draw()
    pixels: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return pixels
