"""Vectors of per-exit thresholds in the calibrate jobs: learned on one split, tested in order on another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_eff.calibration import NEVER, learn_then_test, learn_thresholds
from lit_eff.calibration.classifier import calibrate_classifier
from lit_eff.calibration.config import CalibrationConfig
from lit_eff.calibration.job import calibrate
from lit_eff.calibration.resume import WorkFolder
from lit_eff.decoding.torch_runner import TorchRunner
from lit_eff.errors import UserError
from lit_eff.models.checkpoint import LoadedCheckpoint
from lit_eff.runtime.certificate import LEARNS, Certificate
from lit_eff.runtime.exit_rule import ExitRule
from tests.calibration import test_classifier as labels
from tests.calibration.test_job import CONFIG, HASHES, load, losses_and_rounds, prompts

ALL = {**HASHES, "learning": "1" * 64}
VECTORS = replace(CONFIG, procedure=LEARNS, learning_sequences=24)


def run_vectors(
    loaded: LoadedCheckpoint, config: CalibrationConfig = VECTORS, *, learning_seed: int = 3, **options: Any
) -> Certificate:
    options = {"split_hashes": ALL, "learning_prompts": prompts(24, learning_seed), **options}
    return calibrate(loaded, prompts(30, 0), prompts(10, 1), config, **options)


def one_by_one(runner: TorchRunner, batch: np.ndarray, vector: tuple[float | None, ...]) -> tuple[Any, float]:
    """Losses and layers saved per token, each prompt decoded alone."""
    losses, rounds = losses_and_rounds(runner, batch, ExitRule(thresholds=vector))
    return losses, 4 - np.mean([one.layer_launches for sequence in rounds for one in sequence])


def test_every_figure_is_what_decoding_one_by_one_gives(tmp_path: Path) -> None:
    loaded, learning = load(), prompts(9, 3)
    config = replace(VECTORS, thresholds=(0.5, 0.3, 0.0))
    made = run_vectors(loaded, config, learning_prompts=learning)
    runner = TorchRunner(loaded.model)

    def measure(thresholds_VE: np.ndarray):
        rows = [tuple(None if x == NEVER else x for x in row) for row in thresholds_VE.tolist()]
        losses, saved = zip(*(one_by_one(runner, learning, row) for row in rows), strict=True)
        return np.stack(losses, axis=1), np.array(saved)

    levels = {"delta": CONFIG.delta, "epsilon": CONFIG.epsilon}
    path = learn_thresholds(measure, config.thresholds, 2, **levels)
    expected = [tuple(None if x == NEVER else x for x in row) for row in path.thresholds.tolist()]
    assert expected[0] == (None, None), "never exiting, which needs no test"
    vectors = [one.vector(2) for one in made.candidates]
    assert vectors == expected[1:]
    assert len({len(set(vector)) for vector in vectors}) == 2, "not all share one threshold"
    assert made.learning is not None
    assert (made.learning.sequences, made.learning.vectors) == (9, path.measured)
    assert made.learning.split_sha256 == ALL["learning"]

    losses = np.stack([one_by_one(runner, prompts(30, 0), vector)[0] for vector in vectors], axis=1)
    tested = learn_then_test(losses, **levels)
    assert made.selected == tested.selected
    assert made.selected not in (None, 0)
    assert [one.p_value for one in made.candidates] == pytest.approx(tested.p_values.tolist())
    assert made.thresholds == vectors[made.selected]
    held_out, saved = one_by_one(runner, prompts(10, 1), made.thresholds)
    assert made.test.risk == pytest.approx(held_out.mean(), abs=1e-12)
    assert made.test.layers_per_token == pytest.approx(4 - saved)
    made.save(tmp_path / "exits.json")
    assert Certificate.load(tmp_path / "exits.json") == made


def test_the_order_is_fixed_before_the_calibration_split_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration prompts change neither the candidates nor their order; learning prompts do."""
    loaded = load()
    order = [one.vector(2) for one in run_vectors(loaded).candidates]
    other = calibrate(
        *(loaded, prompts(30, 7), prompts(10, 1), VECTORS), split_hashes=ALL, learning_prompts=prompts(24, 3)
    )
    assert [one.vector(2) for one in other.candidates] == order
    assert [one.vector(2) for one in run_vectors(loaded, learning_seed=4).candidates] != order


def test_where_all_is_over_delta_the_most_conservative_shows_by_how_much() -> None:
    config = replace(VECTORS, delta=0.1, thresholds=(0.1, 0.0))
    made = run_vectors(load(deep_scale=3.0), config)
    assert [one.vector(2) for one in made.candidates] == [(0.1, 0.1)]
    assert made.selected is None
    assert made.candidates[0].risk > 0.1


def test_a_path_of_ones_own_is_a_fixed_sequence() -> None:
    config = replace(CONFIG, thresholds=((None, 0.9), (0.9, 0.3)))
    made = calibrate(load(), prompts(30, 0), prompts(10, 1), config, split_hashes=HASHES)
    assert [one.thresholds for one in made.candidates] == [(None, 0.9), (0.9, 0.3)]
    assert (made.procedure, made.learning) == ("fixed_sequence", None)
    with pytest.raises(UserError, match="for each of 2 early exits"):
        calibrate(
            *(load(), prompts(30, 0), prompts(10, 1), replace(config, thresholds=((0.5,),))),
            split_hashes=HASHES,
        )


def test_an_interrupted_search_goes_on_where_it_was(tmp_path: Path, generated: list[int]) -> None:
    seen: list[tuple[str, int, int]] = []
    whole = run_vectors(load(), progress=lambda *event: seen.append(event))
    total, learning = len(generated), [event for event in seen if event[0] == "learning"]
    # A bar that never goes back: the total grows by the split with every pass.
    passes = len(learning) // 2
    assert passes > 2
    assert learning == [("learning", 24 * k + n, 24 * (k + 1)) for k in range(passes) for n in (16, 24)]

    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 24 * 2:
            raise KeyboardInterrupt

    work = WorkFolder(tmp_path / "work")
    with pytest.raises(KeyboardInterrupt):
        run_vectors(load(), work=work, progress=interrupt)
    generated.clear()
    assert run_vectors(load(), work=work) == whole
    assert len(generated) == total - 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_prompts": None}, "give learning_prompts"),
        ({"learning_prompts": prompts(30, 0)[3:]}, "calibration and learning prompts are not disjoint"),
        ({"learning_prompts": prompts(10, 1)}, "test and learning prompts are not disjoint"),
        ({"split_hashes": {**HASHES, "learning": HASHES["test"]}}, "test and learning prompts are not"),
        ({"split_hashes": {**HASHES, "learning": HASHES["calibration"]}}, "calibration and learning"),
    ],
)
def test_splits_that_overlap_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_vectors(load(), **options)


def test_a_classifier_predicts_once_for_any_number_of_vectors() -> None:
    loaded, seen = labels.classifier(), []
    learning, calibration, test = labels.batches(50, 5), labels.batches(60, 0), labels.batches(20, 1)
    config = replace(labels.CONFIG, procedure=LEARNS, learning_sequences=50)
    made = calibrate_classifier(
        *(loaded, calibration, test, config),
        split_hashes=ALL,
        learning=learning,
        progress=lambda stage, done, total: seen.append(stage),
    )
    assert (seen.count("learning"), seen.count("calibration")) == (4, 4)
    assert made.learning is not None
    assert made.learning.sequences == 50
    assert made.vectors
    assert made.selected is not None
    for one in made.candidates:
        losses, layers = labels.alone(loaded, calibration, one.vector(2), "softmax_response", "disagreement")
        assert one.risk == pytest.approx(losses.mean())
        assert one.layers_per_token == pytest.approx(layers.mean())
    with pytest.raises(UserError, match="give learning"):
        calibrate_classifier(loaded, calibration, test, config, split_hashes=ALL)
