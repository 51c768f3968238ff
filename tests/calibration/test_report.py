"""The report of a certificate: its Markdown and its figures show the certificate's own numbers."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from lit_eff.calibration.figures import PANELS, overview, panel
from lit_eff.calibration.report import markdown, write_report, write_tensorboard
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.claim import sentence
from lit_eff.runtime.evidence import Candidate, Learning, Measured

RISKS, P_VALUES, LAYERS = (0.01, 0.06, 0.2), (1e-20, 0.01, 1.0), (7.5, 6.0, 4.0)
INTERVALS = ((0.0, 0.03), (0.03, 0.09), (0.15, 0.26))


def measured(split: str, **changes: Any) -> Measured:
    values: dict[str, Any] = {
        "split_sha256": hashlib.sha256(split.encode()).hexdigest(),
        "sequences": 1234,
        "risk": 0.07,
        "layers_per_token": 6.25,
        "computed_layers_per_token": 6.5,
        "exit_shares": (0.25, 0.5, 0.25) if split == "test" else (0.375, 0.5, 0.125),
    }
    return Measured(**{**values, **changes})


def certificate(selected: int | None = 1, *, recorded: bool = True, **changes: Any) -> Certificate:
    """Two of three thresholds certified; without ``recorded`` as one from before intervals and shares."""
    grid = zip((0.9, 0.8, 0.5), RISKS, P_VALUES, LAYERS, INTERVALS, strict=True)
    shares = {} if recorded else {"exit_shares": None}
    values: dict[str, Any] = {
        "delta": 0.1,
        "epsilon": 0.05,
        "procedure": "fixed_sequence",
        "p_value": "hoeffding_bentkus",
        "candidates": tuple(
            Candidate(
                threshold=threshold,
                risk=risk,
                p_value=p_value,
                certified=selected is not None and p_value <= 0.05,
                layers_per_token=layers,
                risk_interval=interval if recorded else None,
            )
            for threshold, risk, p_value, layers, interval in grid
        ),
        "selected": selected,
        "exit_layers": (2, 4, 8),
        "thresholds": (None if selected is None else 0.8,) * 2,
        "measure": "softmax_response",
        "decay": None,
        "horizon": 16,
        "kv_policy": "deferred",
        "dtype": "bfloat16",
        "prompt_length": 33,
        "continuation_length": 17,
        "calibration": measured("calibration", **shares),
        "test": measured("test", **shares),
        "train_sha256": None,
        "weights_sha256": "0" * 64,
        "tokenizer_sha256": None,
    }
    return Certificate(**{**values, **changes})


def test_the_summary_states_the_guarantee_its_assumptions_and_the_grid(tmp_path: Path) -> None:
    ours = certificate()
    write_report(ours, tmp_path / "exits.md")
    text = (tmp_path / "exits.md").read_text()
    assert sentence(ours) in text
    assert "](exits.png)" in text
    assert (tmp_path / "exits.png").read_bytes().startswith(b"\x89PNG")
    for word in ("exchangeable", "fixed before", "bfloat16", "33 tokens", "17 greedy tokens", "on average"):
        assert word in text
    assert "which is not known here" in text
    assert text.count("| **selected** |") == 1
    for low, high in INTERVALS:
        assert f"| {low:.4f} to {high:.4f} |" in text
    assert "| test | 25.0% | 50.0% | 25.0% |" in text
    # Every table has a dash and a cell for each of its columns.
    rows = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert set(rows) == {3, 5, 6, 7}


def test_a_model_that_never_exits_needs_no_assumptions() -> None:
    assert "exchangeable" in markdown(certificate())
    assert "exchangeable" not in markdown(certificate(selected=None))


def test_the_figures_show_the_certificates_numbers() -> None:
    ours = certificate()
    risk, layers, exits, p_values = (panel(ours, name).axes[0] for name in PANELS)
    np.testing.assert_allclose(risk.lines[0].get_ydata(), RISKS)
    assert set(risk.lines[1].get_ydata()) == {ours.delta}
    bars = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in risk.patches]
    np.testing.assert_allclose(bars, INTERVALS)
    assert "95% each, of one threshold alone" in risk.get_legend_handles_labels()[1][-1]
    np.testing.assert_allclose(layers.lines[0].get_ydata(), LAYERS)
    (saved,) = layers.child_axes
    layers.figure.savefig(io.BytesIO())
    assert sorted(saved.get_ylim()) == pytest.approx(sorted(8 - limit for limit in layers.get_ylim()))
    for axes, value in ((risk, ours.test.risk), (layers, ours.test.layers_per_token)):
        star = next(line for line in axes.lines if line.get_marker() == "*")
        assert (star.get_xdata().tolist(), star.get_ydata().tolist()) == ([1], [value])
    heights = [bar.get_height() for bar in exits.patches]
    np.testing.assert_allclose(heights, [*ours.calibration.exit_shares, *ours.test.exit_shares])
    assert [label.get_text() for label in exits.get_xticklabels()] == ["2", "4", "8"]
    marks = {line.get_label(): line for line in p_values.lines}
    np.testing.assert_allclose(marks["certified"].get_ydata(), [1e-12, 0.01])
    np.testing.assert_allclose(marks["not certified"].get_ydata(), [1.0])
    assert p_values.get_yscale() == "log"
    assert "1e-12" in p_values.get_ylabel()
    assert [label.get_text() for label in p_values.get_xticklabels()] == ["0.9", "0.8", "0.5"]


def test_vectors_are_shown_by_their_place_in_the_path() -> None:
    path = ((None, 0.9), (0.8, None), (0.7, 0.5))
    ours = certificate(
        candidates=tuple(
            one.model_copy(update={"threshold": None, "thresholds": vector})
            for one, vector in zip(certificate().candidates, path, strict=True)
        ),
        thresholds=path[1],
        procedure="split_fixed_sequence",
        learning=Learning(split_sha256="1" * 64, sequences=500, vectors=77),
    )
    text = markdown(ours)
    assert "The path of 3, which was learned on 500 other sequences among 77 vectors" in text
    assert "| place | threshold after layer 2 | threshold after layer 4 | risk |" in text
    assert "| 1 | never | 0.9 | 0.0100 |" in text
    assert "| 2 | 0.8 | never | 0.0600 |" in text
    rows = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert set(rows) == {3, 5, 6, 9}
    risk, layers, exits, p_values = (panel(ours, name).axes[0] for name in PANELS)
    for axes in (risk, layers, p_values):
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3"]
        assert "place in the path" in axes.get_xlabel()
        assert "selected: 0.8, never" in axes.get_legend_handles_labels()[1]
    assert "of one vector alone" in risk.get_legend_handles_labels()[1][-1]
    assert "vector 0.8, never" in exits.get_title()


def test_older_certificates_and_those_that_never_exit_have_figures_too() -> None:
    old = certificate(recorded=False)
    assert not overview(old).axes[0].patches
    assert [text.get_text() for text in overview(old).axes[2].texts] == ["not recorded"]
    assert "leaving after layer" not in markdown(old)
    never = overview(certificate(selected=None))
    assert not [line for axes in never.axes for line in axes.lines if line.get_marker() == "*"]


def test_tensorboard_gets_every_figure_the_summary_and_the_tests_numbers(tmp_path: Path) -> None:
    ours = certificate()
    writer = SummaryWriter(tmp_path)
    write_tensorboard(ours, writer)
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["images"] == [f"calibration/{name}" for name in PANELS]
    assert "calibration/certificate/text_summary" in events.Tags()["tensors"]
    for name in ("risk", "layers_per_token"):
        value = events.Scalars(f"calibration/test_{name}")[0].value
        assert value == pytest.approx(getattr(ours.test, name))
