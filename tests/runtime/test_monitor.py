"""The monitor's counts, its draws, and a state that survives restarts and refuses what it cannot read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from lit_eff.errors import UserError
from lit_eff.runtime.decode import Round
from lit_eff.runtime.monitor import Monitor
from tests.runtime.test_certificate import certificate


def one_round(exit_index: int, *confidences: tuple[int, float]) -> Round:
    return Round((7,), (), 0, exit_index, 1, 1, 0.001, None, confidences)


def seen(**changes: Any) -> Monitor:
    monitor = Monitor(certificate(**changes), alpha=0.01)
    monitor.observe(one_round(0, (0, 0.7)))
    monitor.observe(one_round(1, (0, 0.0499), (1, 1.0)))
    monitor.observe(one_round(2, (0, 0.05), (1, 0.0)))
    for _ in range(40):
        monitor.draw(0.5, seed=3)
    for loss in (0.0, 0.25, 0.5):
        monitor.test.update(loss)
    return monitor


def test_counts_by_hand() -> None:
    report = seen().report()
    assert report["tokens_by_layer"] == {"2": 1, "4": 1, "8": 1}
    assert report["layers_per_token"] == pytest.approx((2 + 4 + 8) / 3)
    first, second = report["confidences_by_layer"]["2"], report["confidences_by_layer"]["4"]
    assert [i for i, n in enumerate(first) if n] == [0, 1, 14]
    assert [i for i, n in enumerate(second) if n] == [0, 19]
    assert (report["requests"], report["run_in_full"], report["risk"]) == (40, 3, 0.25)
    assert (report["delta"], report["alarm_at"]) == (0.25, None)


def test_draws_repeat_and_take_the_share_they_should() -> None:
    one, two, other = (Monitor(certificate(), alpha=0.01) for _ in range(3))
    draws = [one.draw(0.1, seed=5) for _ in range(5000)]
    assert draws == [two.draw(0.1, seed=5) for _ in range(5000)]
    assert draws != [other.draw(0.1, seed=6) for _ in range(5000)]
    assert binomtest(sum(draws), 5000, 0.1).pvalue > 0.001
    assert all(one.draw(1.0, seed=5) for _ in range(50))
    assert not any(one.draw(0.0, seed=5) for _ in range(50))


def test_sentences() -> None:
    monitor = Monitor(certificate(), alpha=0.01)
    assert "nothing is known" in monitor.sentence()
    assert "No alarm: of 40 certified requests 3 were run in full as well" in seen().sentence()
    assert "changed 25.00% of their tokens" in seen().sentence()
    assert "allows 25%" in seen().sentence()
    monitor = seen()
    for _ in range(50):
        monitor.test.update(1.0)
    assert monitor.sentence().startswith("ALARM: the certificate's guarantee does not hold")
    assert monitor.report()["alarm_at"] == monitor.test.alarm_at


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"metric": "exact_match"}, "their share of continuations that differ was 25.00%"),
        ({"metric": "edit_distance"}, "their normalised token edit distance was 25.00%"),
        ({"metric": "bleu"}, "The risk cannot be watched here: the metric bleu is of text"),
        ({"metric": "my.code:loss"}, "cannot be watched here: the metric my.code:loss"),
        ({"certifies": "risk_consistency"}, "cannot be watched here: risk consistency needs a reference"),
    ],
)
def test_sentences_of_other_risks(changes: dict[str, Any], part: str) -> None:
    assert part in seen(**changes).sentence()


def test_of_several_risks_the_first_that_can_be_watched_is() -> None:
    """Here the second: the first needs a reference, the third too much code."""
    risks = (0.02, 0.03)
    base = certificate()
    monitor = seen(
        certifies="risk_consistency",
        also=(
            {"certifies": "textual_consistency", "metric": "exact_match", "delta": 0.4},
            {"certifies": "textual_consistency", "metric": "bleu", "delta": 0.3},
        ),
        candidates=tuple(one.model_copy(update={"also_risks": risks}) for one in base.candidates),
        calibration=base.calibration.model_copy(update={"also_risks": risks}),
        test=base.test.model_copy(update={"also_risks": risks}),
    )
    assert monitor.test.delta == monitor.report()["delta"] == 0.4
    sentence = monitor.sentence()
    assert "their share of continuations that differ was 25.00%" in sentence
    assert "where the certificate allows 40%" in sentence
    others = "rise of share of differing tokens from the reference, 1 - BLEU from the full model's text"
    assert sentence.endswith(f" Not watched: {others}.")


def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    monitor, path = seen(), tmp_path / "monitor.json"
    monitor.save(path)
    assert [child.name for child in tmp_path.iterdir()] == ["monitor.json"]
    again = Monitor.load(path, certificate(), alpha=0.01)
    assert again.report() == monitor.report()
    draws = [monitor.draw(0.5, seed=3) for _ in range(50)]
    assert [again.draw(0.5, seed=3) for _ in range(50)] == draws
    monitor.test.update(1.0)
    again.test.update(1.0)
    assert again.report() == monitor.report()


def test_another_certificate_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "monitor.json"
    assert Monitor.load(path, certificate(), alpha=0.01).requests == 0  # there is no file yet
    seen().save(path)
    other = Monitor.load(path, certificate(epsilon=0.04), alpha=0.01)
    assert (other.requests, other.test.count, other.layers_per_token) == (0, 0, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version is 2, not 1"),
        ({"exits": [1, 2]}, "exits has shape"),
        ({"risk": {}}, "log_stakes"),
        ({"requests": None}, "NoneType"),
    ],
)
def test_damage_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "monitor.json"
    seen().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=rf"monitor state {path} cannot be read .*{message}.* begin anew"):
        Monitor.load(path, certificate(), alpha=0.01)
    path.write_text("[1]"[:2])
    with pytest.raises(UserError, match="begin anew"):
        Monitor.load(path, certificate(), alpha=0.01)
