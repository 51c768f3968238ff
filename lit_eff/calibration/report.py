"""A certificate for people: a Markdown summary with a PNG, and the same in TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from lit_eff.calibration.figures import PANELS, panel, write_png
from lit_eff.files import atomic_path
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.claim import loss_name, sentence
from lit_eff.runtime.evidence import Candidate, Measured, Tried


class Writer(Protocol):
    """The part of TensorBoard's ``SummaryWriter`` used here."""

    def add_scalar(self, tag: str, scalar_value: float, /) -> Any: ...
    def add_figure(self, tag: str, figure: Any, /) -> Any: ...
    def add_text(self, tag: str, text_string: str, /) -> Any: ...


def markdown(certificate: Certificate, picture: str | None = None) -> str:
    """The guarantee in a sentence, what it assumes and what breaks it, both splits, the exits, the grid.

    Args:
        picture: address of an image to show below the sentence.
    """
    layers = certificate.exit_layers[-1]
    exits = ", ".join(map(str, certificate.exit_layers[:-1]))
    lines = [
        "# Exit certificate",
        "",
        sentence(certificate),
        "",
        *([f"![risk, layers, exits and p-values]({picture})", ""] if picture is not None else []),
        f"Early exits after layers {exits} of {layers}; confidence `{certificate.measure}`; "
        f"{_schedule(certificate)}; KV policy `{certificate.kv_policy or 'none'}`; {certificate.dtype}. "
        "All figures are measured.",
        "",
    ]
    if certificate.selected is not None:  # never exiting needs no assumption
        lines += [
            "## What it assumes",
            "",
            *_table(("the guarantee holds if", "and no longer if"), assumptions(certificate)),
            "",
        ]
    lines += [
        "## What was measured",
        "",
        *_table(
            (
                *("split", "sequences", *_risk_columns(certificate)),
                *("layers launched per token", "layers computed per token"),
            ),
            _splits(certificate),
        ),
        "",
    ]
    if certificate.calibration.exit_shares is not None and certificate.test.exit_shares is not None:
        lines += [
            *_table(
                ("share of tokens leaving after layer", *map(str, certificate.exit_layers)),
                (
                    (name, *(f"{100 * share:.1f}%" for share in shares))
                    for name, shares in (
                        ("calibration", certificate.calibration.exit_shares),
                        ("test", certificate.test.exit_shares),
                    )
                ),
            ),
            "",
        ]
    if certificate.tried is not None:
        lines += [
            f"The confidence measure was chosen among {len(certificate.tried)}, each tested with a total "
            f"error of {certificate.level:.3g}; all that they certify holds at once:",
            "",
            *_table(("measure", "layers per token of the boldest certified"), _tried(certificate.tried)),
            "",
        ]
    lines += [
        f"{_order(certificate)}, from conservative to bold ({certificate.procedure.replace('_', ' ')} "
        f"certifies risk at most {_deltas(certificate)} with total error {certificate.level:.3g}; each bound "
        f"of a true risk holds with probability {1 - certificate.epsilon:g}, for that line and by itself):",
        "",
        *_table(
            (
                *_threshold_columns(certificate),
                *(*_risk_columns(certificate), "bounds of the true risk", "p-value", "certified"),
                "layers per token",
            ),
            _grid(certificate),
        ),
    ]
    return "\n".join(lines) + "\n"


def assumptions(certificate: Certificate) -> list[tuple[str, str]]:
    """What the guarantee stands on, and what breaks it, in plain words: pairs."""
    confidence = f"{100 * (1 - certificate.epsilon):.4g}%"
    shares = " and ".join(f"{100 * risk.delta:.4g}%" for risk in certificate.risks)
    prompt = "prompts as logged" if certificate.prompt_length is None else "prompts"
    length = (
        "of any length" if certificate.prompt_length is None else f"of {certificate.prompt_length} tokens"
    )
    return [
        (
            f"the {certificate.calibration.sequences:,} calibration sequences and those of deployment are "
            "exchangeable: drawn alike, one prompt from each document",
            "users, topics or languages change, traffic drifts, or prompts were picked by how they fared",
        ),
        (
            "every setting was fixed before the calibration data was seen: grid, order, measure, schedule, "
            "delta, epsilon, procedure, p-value",
            "one is changed after a look at these figures and the same split calibrates again",
        ),
        (
            "the model was not trained on the calibration documents"
            if certificate.train_sha256 is not None
            else "the model was not trained on the calibration documents, **which is not known here**",
            "documents, or copies of them, are in both",
        ),
        (
            f"the same weights run, in {certificate.dtype}, KV policy `{certificate.kv_policy or 'none'}`",
            "they are trained further, quantised or run in another dtype (other weights are refused)",
        ),
        (
            f"{prompt} {length} are continued by {certificate.continuation_length} greedy tokens",
            "prompts have another length, more tokens are generated, or tokens are sampled",
        )
        if not certificate.classifies
        else (
            "sequences are cut and padded as they were here",
            "longer or shorter texts are read, or another part of them",
        ),
        (
            f"it is read as one statement on average over sequences: a mean loss of at most {shares}",
            "it is read as a promise for each sequence, or each topic: some lose more, others nothing",
        ),
        (
            f"the {confidence} are read over calibrations: of many on fresh data, at most "
            f"{100 * certificate.epsilon:.4g}% select thresholds of a greater risk",
            "many calibrations are run, and the boldest is kept",
        ),
    ]


def _schedule(certificate: Certificate) -> str:
    if certificate.decay is None:
        return "constant thresholds" if certificate.vectors else "constant threshold"
    return f"threshold decaying with tau {certificate.decay:g} over {certificate.horizon} tokens"


def _splits(certificate: Certificate) -> Iterator[tuple[str, ...]]:
    for name, split in (("calibration", certificate.calibration), ("test", certificate.test)):
        layers = (split.layers_per_token, split.computed_layers_per_token)
        yield name, f"{split.sequences:,}", *_risks(split), *(f"{each:.2f}" for each in layers)


def _tried(tried: Sequence[Tried]) -> Iterator[tuple[str, str]]:
    for one in tried:
        layers = one.layers_per_token
        yield f"`{one.measure}`", "none certified" if layers is None else f"{layers:.2f}"


def _risks(measured: Candidate | Measured) -> list[str]:
    return [f"{risk:.4f}" for risk in (measured.risk, *(measured.also_risks or ()))]


def _risk_columns(certificate: Certificate) -> list[str]:
    risks = certificate.risks
    return ["risk"] if len(risks) == 1 else [f"risk: {loss_name(risk)}" for risk in risks]


def _deltas(certificate: Certificate) -> str:
    return " and ".join(f"{risk.delta:g}" for risk in certificate.risks)


def _order(certificate: Certificate) -> str:
    learning = certificate.learning
    if learning is not None:
        return (
            f"The path of {len(certificate.candidates):,}, which was learned on {learning.sequences:,} other "
            f"sequences among {learning.vectors:,} vectors of thresholds"
        )
    return "The path" if certificate.vectors else "The grid"


def _threshold_columns(certificate: Certificate) -> tuple[str, ...]:
    if not certificate.vectors:
        return ("threshold",)
    return "place", *(f"threshold after layer {layer}" for layer in certificate.exit_layers[:-1])


def _grid(certificate: Certificate) -> Iterator[tuple[str, ...]]:
    for index, one in enumerate(certificate.candidates):
        mark = "**selected**" if index == certificate.selected else "yes" if one.certified else "no"
        bounds = "" if one.risk_interval is None else "{:.4f} to {:.4f}".format(*one.risk_interval)
        thresholds = [str(index + 1), *one.label.split(", ")] if certificate.vectors else [one.label]
        yield (
            *thresholds,
            *_risks(one),
            bounds,
            f"{one.p_value:.3g}",
            mark,
            f"{one.layers_per_token:.2f}",
        )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def write_report(certificate: Certificate, path: str | Path) -> None:
    """Write :func:`markdown` to ``path`` and its picture beside it (``.png``), each whole or not at all."""
    path = Path(path)
    write_png(certificate, path.with_suffix(".png"))
    with atomic_path(path) as temporary:
        temporary.write_text(markdown(certificate, path.with_suffix(".png").name), encoding="utf-8")


def write_tensorboard(certificate: Certificate, writer: Writer) -> None:
    """Plots, the Markdown summary and the test split's figures, under ``calibration/``."""
    for name in PANELS:
        writer.add_figure(f"calibration/{name}", panel(certificate, name))
    writer.add_text("calibration/certificate", markdown(certificate))
    writer.add_scalar("calibration/test_risk", certificate.test.risk)
    for risk, measured in zip(certificate.risks[1:], certificate.test.also_risks or (), strict=True):
        writer.add_scalar(f"calibration/test_risk/{risk.certifies}_{risk.metric}", measured)
    writer.add_scalar("calibration/test_layers_per_token", certificate.test.layers_per_token)
