"""A certificate for people: a Markdown summary, and plots for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from lit_eff.files import atomic_path
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.claim import loss_name


class Writer(Protocol):
    """The part of TensorBoard's ``SummaryWriter`` used here."""

    def add_scalar(self, tag: str, scalar_value: float, /) -> Any: ...
    def add_figure(self, tag: str, figure: Any, /) -> Any: ...
    def add_text(self, tag: str, text_string: str, /) -> Any: ...


def markdown(certificate: Certificate) -> str:
    """The guarantee in a sentence, then what was measured on both splits, then the whole grid."""
    layers = certificate.exit_layers[-1]
    lines = [
        "# Exit certificate",
        "",
        certificate.sentence(),
        "",
        f"Early exits after layers {', '.join(map(str, certificate.exit_layers[:-1]))} of {layers}; "
        f"confidence `{certificate.measure}`; {_schedule(certificate)}; "
        f"KV policy `{certificate.kv_policy or 'none'}`; {certificate.dtype}. All figures are measured.",
        "",
        "| split | sequences | risk | layers launched per token | layers computed per token |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, split in (("calibration", certificate.calibration), ("test", certificate.test)):
        lines.append(
            f"| {name} | {split.sequences:,} | {split.risk:.4f} | {split.layers_per_token:.2f} "
            f"| {split.computed_layers_per_token:.2f} |"
        )
    lines += [
        "",
        f"The grid, from conservative to bold ({certificate.procedure.replace('_', ' ')} certifies risk at "
        f"most {certificate.delta:g} with total error {certificate.epsilon:g}):",
        "",
        "| threshold | risk | p-value | certified | layers per token |",
        "| --- | --- | --- | --- | --- |",
    ]
    for index, one in enumerate(certificate.candidates):
        mark = "**selected**" if index == certificate.selected else "yes" if one.certified else "no"
        lines.append(
            f"| {one.threshold:g} | {one.risk:.4f} | {one.p_value:.3g} | {mark} "
            f"| {one.layers_per_token:.2f} |"
        )
    if certificate.train_sha256 is None:
        lines += ["", "It is not known that the model was not trained on these documents."]
    return "\n".join(lines) + "\n"


def _schedule(certificate: Certificate) -> str:
    if certificate.decay is None:
        return "constant threshold"
    return f"threshold decaying with tau {certificate.decay:g} over {certificate.horizon} tokens"


def write_markdown(certificate: Certificate, path: str | Path) -> None:
    """Write :func:`markdown`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(markdown(certificate), encoding="utf-8")


def figure(certificate: Certificate) -> Any:
    """Risk (with delta) and layers per token over the threshold: a ``matplotlib`` figure."""
    from matplotlib.figure import Figure

    thresholds = [one.threshold for one in certificate.candidates]
    plot = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = plot.subplots(1, 2)
    left.plot(thresholds, [one.risk for one in certificate.candidates], marker=".", label="calibration risk")
    left.axhline(certificate.delta, color="tab:red", linestyle="--", label=f"delta {certificate.delta:g}")
    left.set(
        xlabel="exit threshold (bolder to the right)",
        ylabel=f"risk: {loss_name(certificate)}",
        ylim=(0, None),
    )
    layers = [one.layers_per_token for one in certificate.candidates]
    right.plot(thresholds, layers, marker=".", label="calibration layers")
    right.axhline(certificate.exit_layers[-1], color="tab:gray", linestyle=":", label="full model")
    right.set(ylabel="layers per token", ylim=(0, None))
    if certificate.selected is not None:
        chosen = thresholds[certificate.selected]
        left.plot(chosen, certificate.test.risk, "k*", label=f"test risk at {chosen:g}")
        right.plot(chosen, certificate.test.layers_per_token, "k*", label=f"test layers at {chosen:g}")
    for axes in (left, right):
        axes.set(xlabel="exit threshold (bolder to the right)")
        axes.invert_xaxis()
        axes.legend(fontsize="small")
    return plot


def write_tensorboard(certificate: Certificate, writer: Writer) -> None:
    """Plots, the Markdown summary and the test split's figures, under ``calibration/``."""
    writer.add_figure("calibration/risk_and_layers", figure(certificate))
    writer.add_text("calibration/certificate", markdown(certificate))
    writer.add_scalar("calibration/test_risk", certificate.test.risk)
    writer.add_scalar("calibration/test_layers_per_token", certificate.test.layers_per_token)
