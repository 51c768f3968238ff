"""Calibration from logged prompts of many lengths: how they are split, every figure decoded one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from lit_eff.calibration.traffic import recalibrate, split_prompts
from lit_eff.decoding.torch_runner import TorchRunner
from lit_eff.errors import UserError
from lit_eff.runtime.audit import audit
from tests.calibration.test_job import CONFIG, VOCABULARY, load, run
from tests.calibration.test_vectors import run_vectors

Prompts = list[tuple[int, ...]]


def logged(count: int, seed: int = 0) -> Prompts:
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(0, VOCABULARY, rng.integers(1, 12)).tolist()) for _ in range(count)]


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)), st.randoms())
def test_the_split_depends_on_the_prompts_alone(prompts: Prompts, random: object) -> None:
    calibration, test = split_prompts(prompts)
    assert set(calibration) | set(test) == set(prompts)
    assert len(calibration) + len(test) == len(set(prompts))
    shuffled = prompts[::-1] + prompts
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert split_prompts(shuffled) == (calibration, test)
    more = split_prompts([*prompts, (1, 2, 3, 4)])
    assert set(calibration) <= set(more[0])
    assert set(test) <= set(more[1])


def test_two_thirds_calibrate_whatever_is_in_them() -> None:
    calibration, test = split_prompts(logged(6000))
    total = len(calibration) + len(test)
    assert binomtest(len(calibration), total, 2 / 3).pvalue > 0.001
    lengths = [np.mean([len(prompt) for prompt in part[:500]]) for part in (calibration, test)]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.1)


def test_every_figure_is_what_decoding_one_by_one_gives() -> None:
    loaded, old, prompts = load(), run(load()), logged(60)
    new = recalibrate(loaded, old, [*prompts, *prompts], most=25)
    calibration, test = split_prompts(prompts)
    assert (new.calibration.sequences, new.test.sequences) == (25, min(12, len(test)))
    assert (new.delta, new.epsilon, new.measure, new.decay) == (
        old.delta,
        old.epsilon,
        old.measure,
        old.decay,
    )
    assert [one.threshold for one in new.candidates] == list(CONFIG.thresholds)
    assert (new.prompt_length, new.continuation_length) == (None, CONFIG.continuation_length)
    assert (new.weights_sha256, new.train_sha256) == (old.weights_sha256, None)
    assert new.selected is not None
    runner = TorchRunner(loaded.model)
    for part, measured in ((calibration[:25], new.calibration), (test[:12], new.test)):
        one_by_one = audit(runner, new, part, alpha=0.05)
        assert measured.risk == pytest.approx(one_by_one.risk, abs=1e-12)
        assert measured.layers_per_token == pytest.approx(one_by_one.layers_per_token)
    assert 0 < new.calibration.risk < 1
    assert (
        new.calibration.split_sha256
        != recalibrate(loaded, old, logged(60, 1), most=25).calibration.split_sha256
    )


def test_the_order_of_learned_vectors_is_taken_over_as_a_fixed_sequence() -> None:
    old = run_vectors(load())
    new = recalibrate(load(), old, logged(60), most=25)
    assert (new.procedure, new.learning) == ("fixed_sequence", None)
    assert [one.thresholds for one in new.candidates] == [one.thresholds for one in old.candidates]
    assert new.selected is not None
    assert recalibrate(load(), new, logged(60), most=25) == new


def test_too_few_prompts_are_refused_with_the_number_needed() -> None:
    loaded, old = load(), run(load())
    prompts = logged(200)
    calibration, test = split_prompts(prompts)
    needed = 5  # 0.6^n <= 0.1
    too_few = [*calibration[: needed - 1], *test]
    with pytest.raises(
        UserError, match=rf"4 calibrate and {len(test)} test; .* at least 5 must .* about 8 dis"
    ):
        recalibrate(loaded, old, too_few, most=1000)
    with pytest.raises(UserError, match="4 calibrate"):
        recalibrate(loaded, old, prompts, most=needed - 1)
    with pytest.raises(UserError, match="0 test"):
        recalibrate(loaded, old, calibration, most=1000)
    assert recalibrate(loaded, old, [*calibration[:needed], test[0]], most=1000).test.sequences == 1
