"""Choosing among confidence measures: each tested at its share of epsilon, the best of them certified."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lit_eff.calibration.classifier import calibrate_classifier
from lit_eff.calibration.config import CalibrationConfig
from lit_eff.calibration.figures import panel
from lit_eff.calibration.report import markdown
from lit_eff.calibration.resume import WorkFolder
from lit_eff.calibration.traffic import recalibrate
from lit_eff.errors import UserError
from lit_eff.runtime.certificate import LEARNS, Certificate
from lit_eff.runtime.claim import sentence
from tests.calibration import test_classifier as labels
from tests.calibration.test_job import CONFIG, HASHES, load, run
from tests.calibration.test_traffic import logged
from tests.calibration.test_vectors import VECTORS, run_vectors
from tests.runtime.test_certificate import certificate

MEASURES = ("softmax_response", "max_probability", "entropy")
# Each measure has a scale of its own; where one certifies nothing, or all, there is nothing to choose.
GRID = (0.9, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
SEVERAL = replace(CONFIG, measure=MEASURES, epsilon=0.3, thresholds=GRID)


def layers_of(made: Certificate) -> float | None:
    return None if made.selected is None else made.candidates[made.selected].layers_per_token


def test_the_choice_is_the_best_of_each_measure_alone_at_its_share() -> None:
    made = run(load(), SEVERAL)
    alone = {name: run(load(), replace(SEVERAL, measure=name, epsilon=0.1)) for name in MEASURES}
    layers = {name: layers_of(each) for name, each in alone.items()}
    assert len(set(layers.values())) > 1, "the case should leave a choice"
    assert made.tried is not None
    assert {one.measure: one.layers_per_token for one in made.tried} == layers
    best = min((value, name) for name, value in layers.items() if value is not None)[1]
    assert made.measure == made.exit_rule().measure == best
    assert (made.epsilon, made.level) == (0.3, pytest.approx(0.1))
    assert made.selected == alone[best].selected
    for ours, theirs in zip(made.candidates, alone[best].candidates, strict=True):
        assert (ours.p_value, ours.certified) == (theirs.p_value, theirs.certified)
    assert made.calibration == alone[best].calibration
    assert made.test == alone[best].test


def test_none_certified_is_never_exit() -> None:
    config = replace(SEVERAL, delta=0.1, epsilon=0.9, thresholds=(0.0,))
    made = run(load(deep_scale=3.0), config)
    assert (made.selected, made.measure) == (None, "softmax_response")
    assert made.tried is not None
    assert [one.layers_per_token for one in made.tried] == [None] * 3
    assert markdown(made).count("| none certified |") == 3


def test_a_bolder_threshold_that_saves_less_by_chance_is_no_error() -> None:
    """The order was fixed before: what it saves on these sequences has no say in it."""
    path = ((0.0, 0.0), (0.9, 0.9))
    made = run(load(), replace(CONFIG, delta=0.9, thresholds=path))
    assert made.candidates[0].layers_per_token < made.candidates[1].layers_per_token
    assert made.selected == 1


def test_too_few_sequences_for_a_share_are_refused() -> None:
    run(load(), replace(CONFIG, delta=0.1, epsilon=0.1))
    with pytest.raises(UserError, match=r"epsilon 0\.0333333 .* at least 33 are needed"):
        run(load(), replace(CONFIG, delta=0.1, epsilon=0.1, measure=MEASURES))


def test_vectors_of_each_measure_are_learned_apart() -> None:
    two = MEASURES[:2]
    stages: list[str] = []
    made = run_vectors(
        load(), replace(VECTORS, measure=two, epsilon=0.2), progress=lambda stage, *_: stages.append(stage)
    )
    assert [stage.split()[0] for stage in dict.fromkeys(stages)] == [
        *("learning", "learning", "calibration", "calibration", "test"),
    ], "every order is fixed before any calibration loss is seen"
    alone = {name: run_vectors(load(), replace(VECTORS, measure=name, epsilon=0.1)) for name in two}
    best = min(two, key=lambda name: layers_of(alone[name]) or 4.0)
    assert made.measure == best
    assert made.candidates == tuple(
        one.model_copy(update={"risk_interval": ours.risk_interval})
        for one, ours in zip(alone[best].candidates, made.candidates, strict=True)
    )
    assert made.learning == alone[best].learning
    assert made.procedure == LEARNS


def test_a_classifier_chooses_too() -> None:
    splits = labels.batches(60, 0), labels.batches(20, 1)
    config = replace(labels.CONFIG, epsilon=0.2, measure=MEASURES[:2])
    seen: list[str] = []
    made = calibrate_classifier(
        *(labels.classifier(), *splits, config),
        split_hashes=HASHES,
        progress=lambda stage, *_: seen.append(stage),
    )
    alone = [
        calibrate_classifier(
            labels.classifier(), *splits, replace(config, measure=name, epsilon=0.1), split_hashes=HASHES
        )
        for name in MEASURES[:2]
    ]
    assert made.tried is not None
    assert [one.layers_per_token for one in made.tried] == [layers_of(each) for each in alone]
    assert list(dict.fromkeys(seen)) == [
        "calibration softmax_response",
        "calibration max_probability",
        "test",
    ]


def test_each_measure_has_its_parts_and_bar(tmp_path: Path) -> None:
    found: list[str] = []
    seen: list[tuple[str, int, int]] = []
    work = WorkFolder(tmp_path / "work", lambda stage, *_: found.append(stage))
    whole = run(load(), SEVERAL, work=work, progress=lambda *event: seen.append(event))
    stages = [*(f"calibration {name}" for name in MEASURES), "test"]
    assert list(dict.fromkeys(stage for stage, *_ in seen)) == stages
    assert run(load(), SEVERAL, work=work) == whole
    assert found == stages


def test_recalibration_takes_the_choice_as_made() -> None:
    """Nothing is left to choose, so nothing is paid for."""
    old = run(load(), SEVERAL)
    new = recalibrate(load(), old, logged(60), most=25)
    assert (new.measure, new.tried, new.level) == (old.measure, None, 0.3)


TRIED = tuple({"measure": name, "layers_per_token": 6.0 + k} for k, name in enumerate(MEASURES))


def test_what_was_paid_is_told(tmp_path: Path) -> None:
    made = certificate(tried=TRIED)
    assert "best of 3 measures at 0.0167 each" in sentence(made)
    text = markdown(made)
    assert "chosen among 3, each tested with a total error of 0.0167" in text
    assert "| `entropy` | 8.00 |" in text
    axes = panel(made, "p_values").axes[0]
    assert any(set(line.get_ydata()) == {made.level} for line in axes.lines if line.get_linestyle() == "--")
    assert "/ 3 = 0.0167" in " ".join(axes.get_legend_handles_labels()[1])
    made.save(tmp_path / "exits.json")
    assert Certificate.load(tmp_path / "exits.json") == made
    with pytest.raises(ValidationError, match="which is not among those tried"):
        certificate(tried=TRIED[1:])


@pytest.mark.parametrize("measure", [(), ("entropy", "entropy")])
def test_bad_choices_are_refused(measure: Any) -> None:
    with pytest.raises(UserError, match=r"calibration\.measure is"):
        CalibrationConfig(measure=measure)
