"""Several risks at once: each measured by hand, all kept by what is certified, all told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from lit_eff.calibration import learn_then_test
from lit_eff.calibration.classifier import calibrate_classifier
from lit_eff.calibration.config import CalibrationConfig, Risk
from lit_eff.calibration.figures import panel
from lit_eff.calibration.report import markdown, write_tensorboard
from lit_eff.calibration.traffic import recalibrate
from lit_eff.cli.arguments import check_metric
from lit_eff.errors import UserError
from lit_eff.runtime.certificate import LEARNS, Certificate
from lit_eff.runtime.claim import sentence
from lit_eff.runtime.exit_rule import ExitRule
from lit_eff.runtime.metrics import edit_distance, token_disagreement
from tests.calibration import test_classifier as labels
from tests.calibration.test_job import CONFIG, HASHES
from tests.calibration.test_risks import LOADED, by_hand, documents, run
from tests.calibration.test_traffic import logged
from tests.runtime.test_certificate import certificate, measured

BOTH = replace(
    CONFIG,
    p_value="wsr",
    epsilon=0.2,
    also=(Risk("risk_consistency", "edit_distance", 0.2), Risk("textual_consistency", "exact_match", 0.9)),
)


def of_text(early: list[int], full: list[int], reference: list[int]) -> float:
    return token_disagreement(early, full)


def of_reference(early: list[int], full: list[int], reference: list[int]) -> float:
    return max(0.0, edit_distance(early, reference) - edit_distance(full, reference))


def of_match(early: list[int], full: list[int], reference: list[int]) -> float:
    return float(early != full)


def test_every_risk_is_what_comparing_one_by_one_gives(tmp_path: Path) -> None:
    made = run(LOADED, BOTH)
    assert [(risk.certifies, risk.metric, risk.delta) for risk in made.risks] == [
        ("textual_consistency", "token_disagreement", 0.4),
        ("risk_consistency", "edit_distance", 0.2),
        ("textual_consistency", "exact_match", 0.9),
    ]
    risks = []
    for loss in (of_text, of_reference, of_match):
        columns = [
            by_hand(documents(30, 0), ExitRule(thresholds=one.vector(2)), loss)[0] for one in made.candidates
        ]
        risks.append(np.stack(columns, axis=1))
    for k, one in enumerate(made.candidates):
        assert one.also_risks is not None
        assert (one.risk, *one.also_risks) == pytest.approx([each[:, k].mean() for each in risks], abs=1e-12)
    levels: dict[str, Any] = {"epsilon": 0.2, "p_value": "wsr"}
    expected = learn_then_test(risks, delta=[0.4, 0.2, 0.9], **levels)
    assert made.selected == expected.selected
    assert [one.p_value for one in made.candidates] == pytest.approx(expected.p_values.tolist())
    alone = [learn_then_test(each, delta=d, **levels) for each, d in zip(risks, (0.4, 0.2, 0.9), strict=True)]
    greatest = np.max([each.p_values for each in alone], axis=0)
    assert [one.p_value for one in made.candidates] == pytest.approx(greatest.tolist())
    tested = [
        by_hand(documents(10, 1), made.exit_rule(), loss)[0].mean()
        for loss in (of_text, of_reference, of_match)
    ]
    assert (made.test.risk, *(made.test.also_risks or ())) == pytest.approx(tested, abs=1e-12)
    made.save(tmp_path / "exits.json")
    assert Certificate.load(tmp_path / "exits.json") == made


def test_the_strictest_risk_decides() -> None:
    """Alone, the first certifies bold thresholds; a second that none of them keeps leaves nothing."""
    bold = run(LOADED, replace(BOTH, also=()))
    assert bold.selected not in (None, 0)
    bound = run(LOADED, replace(BOTH, also=(Risk("textual_consistency", "exact_match", 0.1),)))
    assert bound.selected is None or bound.selected < bold.selected
    assert bound.candidates[-1].p_value > bold.candidates[-1].p_value
    with pytest.raises(UserError, match=r"at delta 0\.01"):
        run(LOADED, replace(BOTH, also=(Risk("textual_consistency", "exact_match", 0.01),)))


def test_vectors_are_learned_for_all_risks() -> None:
    from lit_eff.calibration.job import calibrate

    config = replace(BOTH, procedure=LEARNS, learning_sequences=12, also=BOTH.also[:1])
    splits = documents(30, 0), documents(10, 1)
    made = calibrate(
        *(LOADED, *splits, config),
        split_hashes={**HASHES, "learning": "1" * 64},
        learning_prompts=documents(12, 2),
    )
    for one in made.candidates:
        for loss, delta in ((of_text, 0.4), (of_reference, 0.2)):
            learned = by_hand(documents(12, 2), ExitRule(thresholds=one.vector(2)), loss)[0].mean()
            assert learned <= delta + 1e-12


def test_a_classifier_keeps_both_its_risks() -> None:
    config = replace(labels.CONFIG, also=(Risk("error", delta=0.2),))
    splits = labels.batches(60, 0), labels.batches(20, 1)
    made = calibrate_classifier(labels.classifier(), *splits, config, split_hashes=HASHES)
    assert [(risk.certifies, risk.metric) for risk in made.risks] == [
        ("disagreement", "zero_one"),
        ("error", "zero_one"),
    ]
    for one in made.candidates:
        lost, _ = labels.alone(labels.classifier(), splits[0], one.vector(2), made.measure, "error")
        assert one.also_risks == pytest.approx((lost.mean(),))
    assert "changes on average" in sentence(made)
    assert "and at once gets on average" in sentence(made)


def several(**changes: Any) -> Certificate:
    """Text first, then a reference, which no server can watch."""
    also = ({"certifies": "risk_consistency", "metric": "edit_distance", "delta": 0.05},)
    base = certificate()
    values: dict[str, Any] = {
        "also": also,
        "candidates": tuple(one.model_copy(update={"also_risks": (0.02,)}) for one in base.candidates),
        "calibration": measured("calibration", 0.18, 5.0).model_copy(update={"also_risks": (0.01,)}),
        "test": measured("test", 0.21, 5.125).model_copy(update={"also_risks": (0.0312,)}),
    }
    return certificate(**{**values, **changes})


def test_all_risks_are_told(tmp_path: Path) -> None:
    made = several()
    for part in (
        "changes on average at most 25%",
        "and at once raises the normalised token edit distance",
        "by at most 0.05 over",
        "changed 21.0%, raised it by 0.0312 and launched 5.12",
    ):
        assert part in sentence(made)
    text = markdown(made)
    assert "risk: rise of normalised token edit distance from the reference" in text
    assert "risk at most 0.25 and 0.05" in text
    assert "| test | 300 | 0.2100 | 0.0312 |" in text
    axes = panel(made, "risk").axes[0]
    named = axes.get_legend_handles_labels()[1]
    assert "calibration, rise of normalised token edit distance from the reference" in named
    assert any("0.05" in each for each in named)
    drawn = [line.get_ydata().tolist() for line in axes.lines if line.get_marker() == "."]
    assert drawn == [[one.risk for one in made.candidates], [0.02] * 3]
    with SummaryWriter(str(tmp_path)) as writer:
        write_tensorboard(made, writer)
    events = EventAccumulator(str(tmp_path)).Reload()
    (one,) = events.Scalars("calibration/test_risk/risk_consistency_edit_distance")
    assert one.value == pytest.approx(0.0312)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": measured("test", 0.2, 5.0)}, "also_risks is None for 1 further"),
        ({"also": None}, r"also_risks is \(0.02,\) for 0 further"),
        ({"prompt_length": None}, "references follow prompts"),
        ({"also": ({"certifies": "error", "metric": "zero_one", "delta": 0.1},)}, "error is of a classifier"),
        (
            {"also": ({"certifies": "textual_consistency", "metric": "vibes", "delta": 0.1},)},
            "neither a known",
        ),
    ],
)
def test_certificates_that_contradict_themselves_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        several(**changes)


def test_a_log_recalibrates_all_risks_or_none() -> None:
    matches = replace(BOTH, also=BOTH.also[1:])
    new = recalibrate(LOADED, run(LOADED, matches), logged(60), most=25)
    assert [(risk.metric, risk.delta) for risk in new.risks] == [
        ("token_disagreement", 0.4),
        ("exact_match", 0.9),
    ]
    with pytest.raises(UserError, match="a log holds no references"):
        recalibrate(LOADED, run(LOADED, BOTH), logged(60), most=25)


def test_code_of_any_risk_runs_only_where_it_is_named() -> None:
    also = ({"certifies": "textual_consistency", "metric": "my.code:loss", "delta": 0.05},)
    with pytest.raises(UserError, match=r"allow it with --metric my\.code:loss"):
        check_metric(several(also=also), None)
    check_metric(several(also=also), "my.code:loss")
    with pytest.raises(UserError, match=r"'token_disagreement and my\.code:loss'"):
        check_metric(several(also=also), "another.code:loss")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"also": (Risk("textual_consistency", "vibes"),)}, r"calibration.also\[0\].metric is 'vibes'"),
        ({"also": (Risk("error"),)}, "one is of labels and the other of text"),
        ({"also": (Risk("risk_consistency", delta=0.0),)}, r"calibration.also\[0\].delta is 0.0"),
        (
            {"metric": "exact_match", "p_value": "binomial", "also": (Risk("risk_consistency"),)},
            "token_disagreement is in between",
        ),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CalibrationConfig(**changes)
