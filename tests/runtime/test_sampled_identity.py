"""The bet against sampled speculation: wrong engines are found as often as it says, right ones kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np
import pytest

from lit_eff.runtime import decode
from lit_eff.runtime.sampled_identity import MISTAKES, sampled_identity
from lit_eff.runtime.sampling import Distribution, accept_drafts, draw, target_distribution
from tests.runtime.fakes import PrefixModel

PROMPTS = [(1, 0), (2,), (3, 1, 1)]
Accept = Callable[
    [Iterable[Distribution], Sequence[Distribution], Sequence[int], np.random.Generator], tuple[int, int]
]


@cache
def model(seed: int = 0) -> PrefixModel:
    return PrefixModel(exits=3, vocab_size=4, context=7, seed=seed)


def kept(p_rows, q_rows, drafts, rng):  # type: ignore[no-untyped-def]
    """Every draft is accepted."""
    return len(drafts), draw(list(p_rows)[-1], rng)


def redrawn(p_rows, q_rows, drafts, rng):  # type: ignore[no-untyped-def]
    """The residual is forgotten: after a rejection the target is sampled as it is."""
    p_rows = list(p_rows)
    for i, (token, q_V) in enumerate(zip(drafts, q_rows, strict=True)):
        if rng.random() * q_V[token] >= p_rows[i][token]:
            return i, draw(p_rows[i], rng)
    return len(drafts), draw(p_rows[-1], rng)


def not_renormalised(p_rows, q_rows, drafts, rng):  # type: ignore[no-untyped-def]
    """The residual is sampled as if it summed to 1, so that the last token takes what is missing."""
    p_rows = list(p_rows)
    for i, (token, q_V) in enumerate(zip(drafts, q_rows, strict=True)):
        if rng.random() * q_V[token] >= p_rows[i][token]:
            residual_V = np.maximum(p_rows[i] - q_V, 0.0)
            residual_V[-1] += 1.0 - residual_V.sum()
            return i, draw(residual_V, rng)
    return len(drafts), draw(p_rows[-1], rng)


def own(p_rows, q_rows, drafts, rng):  # type: ignore[no-untyped-def]
    """The token after the drafts comes from the draft's distribution."""
    accepted, token = accept_drafts(p_rows, q_rows, drafts, rng)
    return accepted, draw(q_rows[-1], rng) if accepted == len(drafts) and len(q_rows) else token


def swapped(p_rows, q_rows, drafts, rng):  # type: ignore[no-untyped-def]
    """Acceptance compares the wrong way round."""
    p_rows = list(p_rows)
    for i, (token, q_V) in enumerate(zip(drafts, q_rows, strict=True)):
        if rng.random() * p_rows[i][token] >= q_V[token]:
            return i, draw(np.maximum(p_rows[i] - q_V, 0.0) + 1e-12, rng)
    return len(drafts), draw(p_rows[-1], rng)


@pytest.mark.parametrize("mistake", [kept, redrawn, not_renormalised, own, swapped])
def test_a_wrong_acceptance_is_found(monkeypatch: pytest.MonkeyPatch, mistake: Accept) -> None:
    monkeypatch.setattr(decode, "accept_drafts", mistake)
    found = [sampled_identity(model(i), PROMPTS, range(1000 * i, 1000 * i + 500)) for i in range(8)]
    assert [one.verdict for one in found] == ["refuted"] * 8
    assert all(one.sequences < 500 for one in found), "no more is drawn once that is known"


@pytest.mark.parametrize("power", [2.0, 0.5])
def test_a_wrong_temperature_is_found(monkeypatch: pytest.MonkeyPatch, power: float) -> None:
    def reshaped(logits_V, params, history):  # type: ignore[no-untyped-def]
        return target_distribution(power * logits_V, params, history)

    monkeypatch.setattr(decode, "target_distribution", reshaped)
    assert sampled_identity(model(), PROMPTS, range(500)).verdict == "refuted"


def test_a_right_engine_is_refuted_no_more_often_than_stated() -> None:
    trials, alpha = 200, 0.2
    found = [
        sampled_identity(model(i % 8), PROMPTS, range(30 * i, 30 * i + 30), alpha=alpha)
        for i in range(trials)
    ]
    refuted = sum(one.verdict == "refuted" for one in found)
    assert refuted < trials * alpha + 3 * math.sqrt(trials * alpha * (1 - alpha))
    assert refuted > 0, "the bound would be empty"


def test_wealth_is_a_martingale() -> None:
    """A right engine's wealth stays 1 on average: each bet, over many outputs."""
    wealth_M = np.mean(
        [
            np.exp(list(sampled_identity(model(), PROMPTS, [seed]).log_wealths.values()))
            for seed in range(3000)
        ],
        axis=0,
    )
    np.testing.assert_allclose(wealth_M, 1.0, atol=0.06)


@pytest.mark.parametrize(
    ("mistake", "name", "draws"), [(kept, "kept", 8), (not_renormalised, "unnormalised", 50)]
)
def test_the_power_is_as_told(
    monkeypatch: pytest.MonkeyPatch, mistake: Accept, name: str, draws: int
) -> None:
    """So many draws that the power is in the middle."""
    told = [
        sampled_identity(model(), PROMPTS, range(draws * i, draws * (i + 1))).power[name] for i in range(20)
    ]
    monkeypatch.setattr(decode, "accept_drafts", mistake)
    found = [
        sampled_identity(model(), PROMPTS, range(draws * i, draws * (i + 1))).verdict == "refuted"
        for i in range(100)
    ]
    assert 0.2 < np.mean(told) < 0.8
    assert np.mean(found) == pytest.approx(np.mean(told), abs=0.2)


def test_what_it_reports() -> None:
    found = sampled_identity(model(), PROMPTS, range(30))
    assert found.sequences == 30
    assert found.tokens == sum(2 if i // 3 % 4 in (0, 2) else 4 for i in range(30))
    assert found.log_wealths.keys() == found.power.keys() == MISTAKES.keys()
    mean = np.mean(np.exp(list(found.log_wealths.values())))
    assert found.log_wealth == pytest.approx(math.log(mean))
