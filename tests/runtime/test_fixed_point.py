"""Whole-number sampling: its random numbers, its weights against float64, what is drawn from them."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import chi2, chisquare, kstest

from lit_eff.runtime.fixed_point import (
    DEAD,
    FRACTION_BITS,
    MAX_VOCABULARY,
    WEIGHT_BITS,
    draw_token,
    draw_without_replacement,
    float32_logits,
    kept_weights,
    weights_of,
)
from lit_eff.runtime.random_numbers import Purpose, philox, random_word
from lit_eff.runtime.sampling import History, SamplingParams, processed_logits, target_distribution

# Multiples of 1/8: what is equal is exactly so, and what is not is far from it.
LOGITS = arrays(np.float32, 12, elements=st.integers(-64, 64).map(lambda n: np.float32(n / 8)))


def test_philox_is_the_published_one() -> None:
    """Known answers of Random123 (Salmon et al. 2011)."""
    assert philox((0, 0), (0, 0, 0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 0xFFFFFFFF
    assert philox((ones, ones), (ones,) * 4) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    key, counter = (0xA4093822, 0x299F31D0), (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert philox(key, counter) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_words_differ_wherever_anything_does_and_are_uniform() -> None:
    changes = [
        (7, 3, Purpose.TARGET, 0),
        (7 + 2**32, 3, Purpose.TARGET, 0),
        (7, 3 + 2**32, Purpose.TARGET, 0),
    ]
    changes += [
        (7, 3, Purpose.DRAFT, 0),
        (7, 3, Purpose.ACCEPT, 0),
        (7, 3, Purpose.TARGET, 1),
        (8, 3, Purpose.TARGET, 0),
    ]
    assert len({random_word(*each) for each in changes}) == len(changes)
    words = np.array([random_word(seed, 5, Purpose.TARGET) for seed in range(4000)], np.float64) / 2**64
    assert kstest(words, "uniform").pvalue > 0.001


def test_weights_are_powers_of_two() -> None:
    steps = np.r_[0, 1, np.arange(3, DEAD, 7919), DEAD - 1]
    weights, exact = weights_of(steps), 2.0 ** (WEIGHT_BITS - steps / 2**FRACTION_BITS)
    assert np.abs(weights - exact).max() <= 2.0**WEIGHT_BITS * 2**-29
    assert (np.abs(weights - exact) <= exact * 2**-29 + 1).all()
    assert weights[0] == 2**WEIGHT_BITS
    assert weights.min() == 1
    assert (np.diff(weights) <= 0).all()
    assert weights_of(np.array([DEAD]))[0] == 0
    assert MAX_VOCABULARY * 2**WEIGHT_BITS < 2**63


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 3.0])
def test_error_is_that_of_a_float32_softmax(temperature: float) -> None:
    logits_V = (4 * np.random.default_rng(0).normal(size=50_000)).astype(np.float32)
    params = SamplingParams(temperature=temperature)
    exact_V = target_distribution(logits_V, params)
    weights_V = kept_weights(logits_V, params)
    plain_V = np.exp((logits_V - logits_V.max()) / np.float32(temperature))
    plain_V /= plain_V.sum()
    ours, theirs = (np.abs(each - exact_V).sum() for each in (weights_V / weights_V.sum(), plain_V))
    assert ours <= 2 * theirs + 1e-7


@settings(max_examples=300, deadline=None)
@given(
    logits_V=LOGITS,
    temperature=st.sampled_from([0.0, 0.25, 1.0, 2.0]),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.none() | st.floats(0.0625, 1, width=32),
    min_p=st.none() | st.floats(0, 1, width=32),
)
def test_it_is_the_processed_distribution(
    logits_V: np.ndarray, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    weights_V = kept_weights(logits_V, params)
    for top, low in product((1, 1 - 2e-6, 1 + 2e-6), repeat=2):  # a border may be hit up to rounding
        near = replace(
            params,
            top_p=None if top_p is None else min(1.0, top_p * top),
            min_p=None if min_p is None else min(1.0, min_p * low),
        )
        exact_V = target_distribution(logits_V, near)
        if np.allclose(weights_V / weights_V.sum(), exact_V, rtol=3e-6, atol=1e-9):
            return
    raise AssertionError(f"{weights_V / weights_V.sum()} is not {target_distribution(logits_V, params)}")


def test_penalties_are_those_of_the_definition() -> None:
    logits_V = np.random.default_rng(1).normal(size=40).astype(np.float32)
    history = History([3, 5, 5], [7, 7, 3, 9])
    params = SamplingParams(
        1.0,
        repetition_penalty=1.3,
        presence_penalty=0.4,
        frequency_penalty=-0.2,
        logit_bias={7: 2.0, 1: float("-inf")},
    )
    np.testing.assert_allclose(
        float32_logits(logits_V, params, history), processed_logits(logits_V, params, history), rtol=1e-6
    )
    assert kept_weights(logits_V, params, history)[1] == 0


def test_broken_rows_have_no_weights() -> None:
    for worst in (np.nan, np.inf):
        logits_V = np.array([0.0, worst, 1.0], np.float32)
        weights_V = kept_weights(logits_V, SamplingParams(temperature=1.0))
        assert not weights_V.any()
        assert draw_token(weights_V, 12345) == -1


def test_greedy_is_argmax_however_near_the_second() -> None:
    logits_V = np.array([1.0, np.nextafter(np.float32(2), np.float32(3)), 2.0], np.float32)
    for temperature in (0.0, 1e-46):  # which is 0 in float32
        assert np.flatnonzero(kept_weights(logits_V, SamplingParams(temperature))).tolist() == [1]
    tied_V = np.array([1.0, 2.0, 2.0], np.float32)
    assert np.flatnonzero(kept_weights(tied_V, SamplingParams())).tolist() == [1]


def test_draws_follow_the_weights() -> None:
    logits_V = np.random.default_rng(2).normal(size=9).astype(np.float32)
    params = SamplingParams(temperature=0.8, top_p=0.95)
    weights_V = kept_weights(logits_V, params)
    tokens = [draw_token(weights_V, random_word(seed, 11, Purpose.TARGET)) for seed in range(20_000)]
    exact_V = target_distribution(logits_V, params)
    seen_V = np.bincount(tokens, minlength=9)
    assert not seen_V[exact_V == 0].any()
    assert chisquare(seen_V[exact_V > 0], 20_000 * exact_V[exact_V > 0]).pvalue > 0.001
    assert draw_token(weights_V, 2**64 - 1) == np.flatnonzero(weights_V)[-1]
    assert draw_token(weights_V, 0) == np.flatnonzero(weights_V)[0]


def test_draws_without_replacement() -> None:
    """Ordered pairs of three tokens, against p(a) p(b) / (1 - p(a))."""
    weights_V = np.array([5, 0, 2, 1], np.int64) << 40
    p_V = weights_V / weights_V.sum()
    pairs = list(permutations([0, 2, 3], 2))
    counts = dict.fromkeys(pairs, 0)
    for seed in range(12_000):
        words = [random_word(seed, 0, Purpose.DRAFT, slot) for slot in range(2)]
        counts[tuple(draw_without_replacement(weights_V, words))] += 1
    expected = np.array([12_000 * p_V[a] * p_V[b] / (1 - p_V[a]) for a, b in pairs])
    statistic = ((np.array(list(counts.values())) - expected) ** 2 / expected).sum()
    assert chi2.sf(statistic, len(pairs) - 1) > 0.001
    assert draw_without_replacement(weights_V, [2**63] * 5)[3:] == [-1, -1]
