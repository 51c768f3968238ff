"""A certificate as figures: the risk of every candidate, the layers it saves, its exits, its p-values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_eff.files import atomic_path
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.claim import loss_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_P = 1e-12  # what is less is drawn here
MOST_TICKS = 26


def draw_risk(axes: Axes, certificate: Certificate) -> None:
    """Calibration risk of each candidate with the interval of its true risk, delta, and the test's risk."""
    candidates, places = certificate.candidates, np.arange(len(certificate.candidates))
    axes.plot(places, [one.risk for one in candidates], marker=".", label=_calibrated(certificate, 0))
    intervals = [one.risk_interval for one in candidates if one.risk_interval is not None]
    if len(intervals) == len(candidates):
        low, high = np.transpose(intervals)
        share = f"{100 * (1 - certificate.epsilon):.4g}%"
        axes.bar(  # one for each candidate, of which it speaks alone
            places,
            high - low,
            bottom=low,
            width=0.8,
            alpha=0.25,
            label=f"bounds of the true risk, {share} each, of one {_kind(certificate)} alone",
        )
    axes.axhline(
        certificate.delta, color="tab:red", linestyle="--", label=rf"$\delta$ = {certificate.delta:g}"
    )
    several = len(certificate.risks) > 1
    name = "mean loss of a sequence" if several else loss_name(certificate.risks[0])
    axes.set(title="risks" if several else "risk", ylabel=name, ylim=(0, None))
    if certificate.selected is not None:
        axes.plot(certificate.selected, certificate.test.risk, "k*", markersize=10, label="test")
    for index, risk in enumerate(certificate.risks[1:]):
        colour = f"C{index + 4}"  # those before are taken
        measured = [one.also_risks[index] for one in candidates if one.also_risks is not None]
        axes.plot(places, measured, marker=".", color=colour, label=_calibrated(certificate, index + 1))
        axes.axhline(risk.delta, color=colour, linestyle="--", label=rf"its $\delta$ = {risk.delta:g}")
        if certificate.selected is not None and certificate.test.also_risks is not None:
            axes.plot(
                certificate.selected, certificate.test.also_risks[index], "*", color=colour, markersize=10
            )
    _finish_grid(axes, certificate)


def draw_layers(axes: Axes, certificate: Certificate) -> None:
    """Layers launched per token by each candidate; those saved on the right-hand axis."""
    layers = certificate.exit_layers[-1]
    axes.plot([one.layers_per_token for one in certificate.candidates], marker=".", label="calibration")
    axes.axhline(layers, color="tab:gray", linestyle="--", label="full model")
    axes.set(title="layers", ylabel="layers launched per token", ylim=(0, 1.05 * layers))
    if certificate.selected is not None:
        test = certificate.test.layers_per_token
        axes.plot(certificate.selected, test, "k*", markersize=10, label="test")
    saved = partial(np.subtract, layers)  # its own inverse
    axes.secondary_yaxis("right", functions=(saved, saved)).set(ylabel="layers saved per token")
    _finish_grid(axes, certificate)


def draw_exits(axes: Axes, certificate: Certificate) -> None:
    """Share of tokens that leave after each exit's layer under the selected rule, on both splits."""
    places = np.arange(len(certificate.exit_layers))
    splits = {"calibration": certificate.calibration, "test": certificate.test}
    for side, (name, split) in zip((-0.2, 0.2), splits.items(), strict=True):
        if split.exit_shares is not None:
            axes.bar(
                places + side,
                split.exit_shares,
                width=0.4,
                color="tab:blue" if name == "calibration" else "black",
                label=f"{name}, {split.sequences:,} sequences",
            )
    if axes.patches:
        axes.legend(fontsize="small")
    else:
        axes.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axes.transAxes)
    rule = "never exit" if certificate.selected is None else f"{_kind(certificate)} {_selected(certificate)}"
    axes.set(title=f"exits of the selected rule: {rule}", xlabel="layer", ylabel="share of tokens")
    axes.set(xlim=(-0.6, len(places) - 0.4), ylim=(0, 1))
    axes.set_xticks(places, [str(layer) for layer in certificate.exit_layers])


def draw_p_values(axes: Axes, certificate: Certificate) -> None:
    """The p-value of each candidate, certified or not, with the level of the whole test."""
    p_values = np.array([one.p_value for one in certificate.candidates])
    certified = np.array([one.certified for one in certificate.candidates])
    places = np.arange(len(p_values))
    axes.plot(places, np.maximum(p_values, LEAST_P), color="tab:gray", linewidth=0.8)
    for chosen, marker, label in ((certified, "o", "certified"), (~certified, "x", "not certified")):
        if chosen.any():
            colour = "tab:green" if marker == "o" else "tab:red"
            axes.plot(
                places[chosen],
                np.maximum(p_values[chosen], LEAST_P),
                marker,
                color=colour,
                markersize=5,
                label=label,
            )
    level = certificate.level
    share = "" if certificate.tried is None else f" / {len(certificate.tried)}"
    label = rf"$\epsilon${share} = {level:.3g}"
    axes.axhline(level, color="tab:red", linestyle="--", label=label)
    below = f" (at least {LEAST_P:g} shown)" if p_values.min() < LEAST_P else ""
    how = f"{certificate.procedure}, {certificate.p_value}".replace("_", "-")
    axes.set(title=f"p-values: {how}", ylabel=f"p-value{below}", yscale="log")
    axes.set_ylim(max(LEAST_P, min(p_values.min(), level)) / 3, 3)
    _finish_grid(axes, certificate)


PANELS: dict[str, Callable[[Axes, Certificate], None]] = {
    "risk": draw_risk,
    "layers": draw_layers,
    "exits": draw_exits,
    "p_values": draw_p_values,
}


def panel(certificate: Certificate, name: str) -> Figure:
    """One of :data:`PANELS` as a figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    PANELS[name](figure.subplots(), certificate)
    return figure


def overview(certificate: Certificate) -> Figure:
    """All of :data:`PANELS` in one figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    for axes, draw in zip(figure.subplots(2, 2).flat, PANELS.values(), strict=True):
        draw(axes, certificate)
    return figure


def write_png(certificate: Certificate, path: str | Path) -> None:
    """Write :func:`overview`, whole or not at all."""
    with atomic_path(path) as temporary:
        overview(certificate).savefig(temporary, format="png", dpi=110)


def _finish_grid(axes: Axes, certificate: Certificate) -> None:
    """The candidates as the horizontal axis, evenly spaced: thresholds crowd where tokens are confident.

    Vectors are too long for a tick; theirs is the number that they have in the report's table.
    """
    if certificate.selected is not None:
        label = f"selected: {_selected(certificate)}"
        axes.axvline(certificate.selected, color="black", linestyle=":", linewidth=1, label=label)
    count = len(certificate.candidates)
    places = np.arange(0, count, -(-count // MOST_TICKS))
    if certificate.vectors:
        axes.set_xticks(places, [str(place + 1) for place in places])
        axes.set(xlabel="vector of thresholds, by its place in the path (bolder to the right)")
    else:
        labels = [certificate.candidates[place].label for place in places]
        aslant: dict[str, Any] = (
            {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if len(places) > 8 else {}
        )
        axes.set_xticks(places, labels, **aslant)
        axes.set(xlabel="exit threshold (bolder to the right)")
    axes.set(xlim=(-0.5, count - 0.5))
    axes.legend(fontsize="small")


def _calibrated(certificate: Certificate, index: int) -> str:
    risks = certificate.risks
    return "calibration" if len(risks) == 1 else f"calibration, {loss_name(risks[index])}"


def _selected(certificate: Certificate) -> str:
    assert certificate.selected is not None
    return certificate.candidates[certificate.selected].label


def _kind(certificate: Certificate) -> str:
    return "vector" if certificate.vectors else "threshold"
