"""Risks other than token disagreement: every figure recomputed by decoding and comparing one by one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lit_eff.calibration import learn_then_test
from lit_eff.calibration.config import CalibrationConfig
from lit_eff.calibration.figures import overview
from lit_eff.calibration.job import calibrate, take_prompts
from lit_eff.calibration.report import markdown
from lit_eff.calibration.text_metrics import find_metric
from lit_eff.calibration.traffic import recalibrate
from lit_eff.decoding.torch_runner import TorchRunner
from lit_eff.errors import UserError
from lit_eff.models.checkpoint import LoadedCheckpoint
from lit_eff.runtime.audit import audit
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.claim import sentence
from lit_eff.runtime.exit_rule import ExitRule
from tests.calibration.test_job import CONFIG, HASHES, PROMPT, STEPS, VOCABULARY, decode, load
from tests.calibration.test_traffic import logged
from tests.runtime.fakes import byte_tokenizer

TOKENIZER = byte_tokenizer().to_str()


LOADED = replace(load(), tokenizer_json=TOKENIZER)
RUNNER = TorchRunner(LOADED.model)


@functools.cache
def documents(count: int, seed: int) -> np.ndarray:
    """Prompts, each with tokens of its own behind it: every other time the full model's."""
    rows = np.random.default_rng(seed).integers(0, VOCABULARY, (count, PROMPT + STEPS))
    for row in rows[::2]:
        row[PROMPT:] = [one.tokens[0] for one in decode(RUNNER, tuple(row[:PROMPT].tolist()), None)]
    return rows


def run(loaded: LoadedCheckpoint, config: CalibrationConfig) -> Certificate:
    length = PROMPT + config.reference_length
    splits = documents(30, 0)[:, :length], documents(10, 1)[:, :length]
    return calibrate(loaded, *splits, config, split_hashes=HASHES)


def vowels_lost(one: str, other: str) -> float:
    """A metric of the user's own."""
    count = [sum(letter in "aeiouAEIOU" for letter in text) for text in (one, other)]
    return min(1.0, abs(count[0] - count[1]) / 3)


def by_hand(rows: np.ndarray, rule: ExitRule, loss: Callable[..., float]) -> tuple[np.ndarray, float]:
    """Losses ``(B,)``, and layers launched a token."""
    losses, layers = [], []
    for row in rows.tolist():
        prompt, reference = tuple(row[:PROMPT]), row[PROMPT:]
        early, full = decode(RUNNER, prompt, rule), decode(RUNNER, prompt, None)
        losses.append(loss(*([one.tokens[0] for one in rounds] for rounds in (early, full)), reference))
        layers += [one.layer_launches for one in early]
    return np.array(losses), float(np.mean(layers))


METRICS = ("exact_match", "edit_distance", "rouge_l", "chrf", "bleu", f"{__name__}:vowels_lost")


@pytest.mark.parametrize("risk", ["textual_consistency", "risk_consistency"])
@pytest.mark.parametrize("name", METRICS)
def test_every_figure_is_what_comparing_one_by_one_gives(risk: str, name: str) -> None:
    delta = 0.3 if risk == "risk_consistency" else 0.6
    config = replace(CONFIG, risk=risk, metric=name, delta=delta, epsilon=0.2)
    certificate = run(LOADED, config)
    assert (certificate.certifies, certificate.metric) == (risk, name)
    metric = find_metric(name, TOKENIZER)

    def loss(early: list[int], full: list[int], reference: list[int]) -> float:
        if risk == "textual_consistency":
            return metric(early, full)
        return max(0.0, metric(early, reference) - metric(full, reference))

    columns = []
    for candidate in certificate.candidates:
        rule = ExitRule(thresholds=(candidate.threshold,) * 2)
        losses, layers = by_hand(documents(30, 0), rule, loss)
        assert candidate.risk == pytest.approx(losses.mean(), abs=1e-12)
        assert candidate.layers_per_token == pytest.approx(layers)
        columns.append(losses)
    assert all(column.any() for column in columns[2:]), "bold thresholds change something"
    expected = learn_then_test(np.stack(columns, axis=1), delta=delta, epsilon=0.2)
    assert certificate.selected == expected.selected
    assert [one.p_value for one in certificate.candidates] == pytest.approx(list(expected.p_values))
    losses, layers = by_hand(documents(10, 1), certificate.exit_rule(), loss)
    assert certificate.test.risk == pytest.approx(losses.mean(), abs=1e-12)
    assert certificate.test.layers_per_token == pytest.approx(layers)

    rows = documents(10, 1)[:, : PROMPT + config.reference_length]
    again = audit(RUNNER, certificate, list(map(tuple, rows.tolist())), alpha=0.05, metric=metric)
    assert again.risk == pytest.approx(certificate.test.risk, abs=1e-12)
    assert sentence(certificate) in markdown(certificate)
    assert "tokens changed" not in overview(certificate).axes[0].get_ylabel()


def test_never_exiting_loses_nothing_of_a_reference() -> None:
    """A model whose exits say something else: the full model is still no worse than itself."""
    config = replace(CONFIG, risk="risk_consistency", delta=0.01, epsilon=0.9, thresholds=(0.0,))
    certificate = run(replace(load(deep_scale=3.0), tokenizer_json=TOKENIZER), config)
    assert certificate.candidates[0].risk > 0.01
    assert certificate.selected is None
    assert (certificate.calibration.risk, certificate.test.risk) == (0.0, 0.0)


def test_comparing_texts_tells_its_progress() -> None:
    seen: list[tuple[str, int, int]] = []
    splits = documents(30, 0)[:, :PROMPT], documents(10, 1)[:, :PROMPT]
    config = replace(CONFIG, metric="rouge_l")
    calibrate(LOADED, *splits, config, split_hashes=HASHES, progress=lambda *event: seen.append(event))
    stages = ("calibration", "calibration rouge_l", "test", "test rouge_l")
    assert list(dict.fromkeys(stage for stage, *_ in seen)) == list(stages)
    assert {stage: counts for stage, *counts in seen} == dict(
        zip(stages, [[30, 30], [30, 30], [10, 10], [10, 10]], strict=True)
    )


def test_references_follow_their_prompts() -> None:
    rows = [np.arange(6), np.arange(9), np.arange(20, 29), np.r_[np.arange(4), np.arange(40, 49)]]
    taken = take_prompts(rows, split="test", count=2, length=4, reference=3)
    assert taken.tolist() == [list(range(7)), list(range(20, 27))]
    others = take_prompts(rows[::-1], split="test", count=1, length=4, reference=3, exclude=taken[:1])
    assert others.tolist() == [list(range(20, 27))], "the last begins as the first does"
    with pytest.raises(UserError, match="has 3 documents of at least 7 tokens; 4 are asked for"):
        take_prompts(rows, split="test", count=4, length=4, reference=3)


def test_recalibration_keeps_the_risk_and_refuses_what_a_log_cannot_tell() -> None:
    old = run(LOADED, replace(CONFIG, metric="edit_distance", p_value="wsr"))
    new = recalibrate(LOADED, old, logged(60), most=25)
    assert (new.certifies, new.metric, new.p_value) == ("textual_consistency", "edit_distance", "wsr")
    again = audit(RUNNER, new, logged(3), alpha=0.05)
    assert 0.0 <= again.risk <= 1.0
    of_reference = run(LOADED, replace(CONFIG, risk="risk_consistency"))
    with pytest.raises(UserError, match="a log holds no references"):
        recalibrate(LOADED, of_reference, logged(60), most=25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"risk": "disagreement"},
            "'disagreement', of a classifier, and this checkpoint is a language model",
        ),
        ({"risk": "risk_consistency"}, r"shape \(30, 4\); expected \(sequences, 10\)"),
        ({"metric": "chrf"}, "has no tokenizer"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict, message: str) -> None:
    loaded = replace(load(), tokenizer_json=None)
    splits = documents(30, 0)[:, :PROMPT], documents(10, 1)[:, :PROMPT]
    with pytest.raises(UserError, match=message):
        calibrate(loaded, *splits, replace(CONFIG, **changes), split_hashes=HASHES)
