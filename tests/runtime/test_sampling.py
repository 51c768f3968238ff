"""The processed distribution, step by step, and the acceptance rule on its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from lit_eff.errors import UserError
from lit_eff.runtime.sampling import (
    History,
    SamplingParams,
    accept_drafts,
    accept_greedy,
    draw,
    greedy_token,
    target_distribution,
)

LOGITS = arrays(np.float32, 12, elements=st.floats(-8, 8, width=32))


def test_temperature_is_softmax() -> None:
    logits_V = np.random.default_rng(0).normal(size=50).astype(np.float32)
    for temperature in (0.3, 1.0, 2.5):
        p_V = target_distribution(logits_V, SamplingParams(temperature=temperature))
        np.testing.assert_allclose(p_V, softmax(logits_V.astype(np.float64) / temperature), rtol=1e-12)


def test_greedy_takes_the_lowest_index_and_is_the_limit_of_low_temperatures() -> None:
    logits_V = np.array([0.0, 3.0, 1.0, 3.0], np.float32)
    assert greedy_token(logits_V, SamplingParams()) == 1
    np.testing.assert_array_equal(target_distribution(logits_V, SamplingParams()), [0, 1, 0, 0])
    distinct_V = np.array([0.0, 3.0, 1.0, 2.9], np.float32)
    cold_V = target_distribution(distinct_V, SamplingParams(temperature=1e-4))
    np.testing.assert_array_equal(cold_V, target_distribution(distinct_V, SamplingParams()))


@given(logits_V=LOGITS, k=st.integers(1, 15))
def test_top_k_keeps_the_k_best_and_lower_indices_among_equals(logits_V: np.ndarray, k: int) -> None:
    p_V = target_distribution(logits_V, SamplingParams(temperature=1.0, top_k=k))
    order = np.argsort(-softmax(logits_V.astype(np.float64)), kind="stable")
    assert sorted(np.flatnonzero(p_V)) == sorted(order[:k])
    assert p_V.sum() == pytest.approx(1)


@given(logits_V=LOGITS, top_p=st.floats(0.01, 0.99), k=st.none() | st.integers(1, 12))
def test_top_p_is_the_smallest_set_that_reaches_the_sum(
    logits_V: np.ndarray, top_p: float, k: int | None
) -> None:
    p_V = target_distribution(logits_V, SamplingParams(temperature=1.0, top_k=k, top_p=top_p))
    full_V = target_distribution(logits_V, SamplingParams(temperature=1.0, top_k=k))
    kept = np.flatnonzero(p_V)
    order = [i for i in np.argsort(-full_V, kind="stable") if full_V[i] > 0]
    assert sorted(kept) == sorted(order[: len(kept)])
    assert full_V[kept].sum() >= top_p - 1e-12
    assert full_V[order[: len(kept) - 1]].sum() < top_p + 1e-12
    np.testing.assert_allclose(p_V[kept], full_V[kept] / full_V[kept].sum(), rtol=1e-12)


@given(logits_V=LOGITS, min_p=st.floats(0, 1))
def test_min_p_is_relative_to_the_best(logits_V: np.ndarray, min_p: float) -> None:
    p_V = target_distribution(logits_V, SamplingParams(temperature=1.0, min_p=min_p))
    weights_V = np.exp(logits_V.astype(np.float64) - np.float64(logits_V.max()))
    np.testing.assert_array_equal(p_V > 0, weights_V >= min_p)


def test_penalties_and_bias() -> None:
    logits_V = np.array([2.0, -2.0, 1.0, 0.5], np.float32)
    history = History(prompt=[0, 1], output=[2, 2, 1])
    params = SamplingParams(
        temperature=1.0,
        repetition_penalty=2.0,
        presence_penalty=0.25,
        frequency_penalty=0.5,
        logit_bias={3: 1.5},
    )
    expected = np.array([2.0 / 2, -2.0 * 2 - 0.25 - 0.5, 1.0 / 2 - 0.25 - 2 * 0.5, 0.5 + 1.5])
    np.testing.assert_allclose(target_distribution(logits_V, params, history), softmax(expected))
    np.testing.assert_array_equal(logits_V, np.array([2.0, -2.0, 1.0, 0.5], np.float32))
    banned = SamplingParams(logit_bias={0: float("-inf")})
    assert greedy_token(logits_V, banned) == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"min_p": 1.1}, "min_p is 1.1"),
        ({"seed": -1}, "seed is -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"frequency_penalty": float("inf")}, "frequency_penalty is inf"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias is"),
    ],
)
def test_bad_parameters_are_named(settings: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        SamplingParams(**settings)


def test_broken_logits_are_refused() -> None:
    with pytest.raises(UserError, match="nan"):
        target_distribution(np.array([0.0, np.nan], np.float32), SamplingParams(temperature=1.0))


def test_draw_never_returns_a_token_of_no_weight() -> None:
    class Largest:
        def random(self) -> float:
            return 1 - 2.0**-53

    class Least:
        def random(self) -> float:
            return 0.0

    rng = np.random.default_rng(3)
    for _ in range(300):
        weights_V = rng.random(20) * (rng.random(20) < 0.4) * 10.0 ** rng.integers(-12, 12)
        weights_V[7] += 1e-9
        for source in (rng, Largest(), Least()):
            assert weights_V[draw(weights_V, source)] > 0  # type: ignore[arg-type]


def exact_output_of_one_round(p_V: np.ndarray, q_V: np.ndarray) -> np.ndarray:
    """Algorithm 1 in closed form for one draft: q min(1, p/q) + P(reject) residual."""
    kept_V = np.minimum(p_V, q_V)
    residual_V = np.maximum(p_V - q_V, 0)
    return kept_V + (1 - kept_V.sum()) * residual_V / residual_V.sum()


def test_acceptance_rate_is_one_minus_total_variation_and_the_output_is_p() -> None:
    rng = np.random.default_rng(1)
    p_V, q_V = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
    np.testing.assert_allclose(exact_output_of_one_round(p_V, q_V), p_V)
    trials = 40_000
    accepted, first = 0, np.zeros(5)
    for _ in range(trials):
        token = draw(q_V, rng)
        kept, own = accept_drafts([p_V, p_V], [q_V], [token], rng)
        accepted += kept
        first[token if kept else own] += 1
    variation = 0.5 * np.abs(p_V - q_V).sum()
    assert accepted / trials == pytest.approx(1 - variation, abs=4 * np.sqrt(0.25 / trials))
    expected = trials * p_V
    assert np.sum((first - expected) ** 2 / expected) < 18.5  # chi-square, 4 degrees of freedom, p = 0.001


@settings(deadline=None)
@given(logits_GV=arrays(np.float32, (4, 6), elements=st.floats(-5, 5, width=32)), seed=st.integers(0, 2**32))
def test_equal_distributions_accept_everything(logits_GV: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [target_distribution(row_V, SamplingParams(temperature=1.0, top_p=0.9)) for row_V in logits_GV]
    drafts = [draw(row_V, rng) for row_V in rows[:3]]
    accepted, own = accept_drafts(rows, rows[:3], drafts, rng)
    assert accepted == 3
    assert rows[3][own] > 0


def test_disjoint_distributions_accept_nothing_and_draw_the_target() -> None:
    rng = np.random.default_rng(0)
    p_V, q_V = np.array([0.0, 0.4, 0.6]), np.array([1.0, 0.0, 0.0])
    owns = [accept_drafts([p_V, p_V], [q_V], [0], rng) for _ in range(2000)]
    assert {kept for kept, _ in owns} == {0}
    assert np.mean([own == 2 for _, own in owns]) == pytest.approx(0.6, abs=0.04)


@given(targets=st.lists(st.integers(0, 2), min_size=1, max_size=6), data=st.data())
def test_greedy_acceptance_is_the_rule_on_one_hots(targets: list[int], data: st.DataObject) -> None:
    drafts = data.draw(st.lists(st.integers(0, 2), min_size=len(targets) - 1, max_size=len(targets) - 1))
    one_hot = np.eye(3)
    general = accept_drafts(
        [one_hot[t] for t in targets], [one_hot[d] for d in drafts], drafts, np.random.default_rng(0)
    )
    assert accept_greedy(targets, drafts) == general
