"""Sampled decoding draws from the right joint distribution: chi-square against exact enumeration.

Three tokens over a vocabulary of three, so 27 outcomes; drafts of length 2 make the third token cross a round
whenever one is rejected. A broken acceptance rule must fail the same test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import product

import numpy as np
import pytest
from scipy.stats import chi2

from lit_eff.runtime import decode
from lit_eff.runtime.confidence import LOGIT_MEASURES
from lit_eff.runtime.decode import GenerateRequest, generate
from lit_eff.runtime.exit_rule import ExitRule
from lit_eff.runtime.sampling import Distribution, History, SamplingParams, draw, target_distribution
from tests.runtime.fakes import PrefixModel

PROMPT = (1, 0)
TOKENS = 3
TRIALS = 5_000
PLAIN = SamplingParams(temperature=1.0)
SHAPED = SamplingParams(temperature=0.8, top_p=0.9, min_p=0.05, repetition_penalty=1.2, logit_bias={0: 0.3})
COUNTED = SamplingParams(temperature=1.3, top_k=2, presence_penalty=0.4, frequency_penalty=0.7)
RULE = ExitRule(measure="max_probability", thresholds=(0.75, 0.6), decay=2.0, horizon=4)
Outcome = tuple[int, ...]


def full_model(model: PrefixModel, tokens: Outcome) -> np.ndarray:
    return model.logits(len(model.exit_layers) - 1, tokens)


def early_exit(model: PrefixModel, tokens: Outcome) -> np.ndarray:
    for e in range(len(model.exit_layers) - 1):
        logits_V = model.logits(e, tokens)
        if RULE.should_exit(e, LOGIT_MEASURES[RULE.measure](logits_V), len(tokens) - len(PROMPT)):
            return logits_V
    return full_model(model, tokens)


def enumerate_exactly(
    model: PrefixModel, params: SamplingParams, logits: Callable[[PrefixModel, Outcome], np.ndarray]
) -> dict[Outcome, float]:
    """Probability of every output, by the chain rule over processed distributions."""
    probabilities = {}
    for outcome in product(range(model.vocab_size), repeat=TOKENS):
        probability = 1.0
        for i, token in enumerate(outcome):
            history = History(PROMPT, outcome[:i])
            probability *= target_distribution(logits(model, (*PROMPT, *outcome[:i])), params, history)[token]
        probabilities[outcome] = probability
    assert sum(probabilities.values()) == pytest.approx(1)
    return probabilities


def p_value(
    model: PrefixModel, params: SamplingParams, exact: dict[Outcome, float], **fields: object
) -> float:
    """Chi-square goodness of fit of TRIALS outputs; 0 when an impossible output was seen."""
    counts: Counter[Outcome] = Counter()
    for trial in range(TRIALS):
        seeded = SamplingParams(**{**params.__dict__, "seed": trial})
        request = GenerateRequest(prompt_tokens=PROMPT, max_tokens=TOKENS, sampling=seeded, **fields)  # type: ignore[arg-type]
        counts[tuple(token for one in generate(model, request) for token in one.tokens)] += 1
    possible = {outcome: TRIALS * p for outcome, p in exact.items() if p > 0}
    if set(counts) - set(possible):
        return 0.0
    rare = [outcome for outcome, expected in possible.items() if expected < 5]  # pooled into one cell
    cells = [(counts[o], expected) for o, expected in possible.items() if expected >= 5]
    if rare:
        cells.append((sum(counts[o] for o in rare), sum(possible[o] for o in rare)))
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    return float(chi2.sf(statistic, len(cells) - 1))


@pytest.mark.parametrize(
    ("params", "draft_exit", "draft_length"),
    [(PLAIN, 0, 2), (PLAIN, 1, 1), (SHAPED, 0, 2), (COUNTED, 1, 2)],
    ids=["plain", "plain-1", "shaped", "penalties"],
)
def test_lossless_output_is_distributed_as_the_full_model(
    params: SamplingParams, draft_exit: int, draft_length: int
) -> None:
    model = PrefixModel()
    exact = enumerate_exactly(model, params, full_model)
    fields = {"mode": "lossless", "draft_exit": draft_exit, "draft_length": draft_length}
    assert p_value(model, params, exact, **fields) > 0.001


def test_certified_output_is_distributed_as_the_exits_taken() -> None:
    model = PrefixModel()
    exact = enumerate_exactly(model, SHAPED, early_exit)
    assert p_value(model, SHAPED, exact, mode="certified", exit_rule=RULE) > 0.001


def test_autoregressive_output_is_distributed_as_the_full_model() -> None:
    model = PrefixModel()
    assert p_value(model, SHAPED, enumerate_exactly(model, SHAPED, full_model)) > 0.001


def without_residual(
    p_rows: Iterable[Distribution],
    q_rows: Sequence[Distribution],
    drafts: Sequence[int],
    rng: np.random.Generator,
) -> tuple[int, int]:
    """The classic mistake: at a rejection, sample p instead of norm(max(0, p - q))."""
    rows = list(p_rows)
    for i, (token, q_V) in enumerate(zip(drafts, q_rows, strict=True)):
        if rng.random() * q_V[token] >= rows[i][token]:
            return i, draw(rows[i], rng)
    return len(drafts), draw(rows[-1], rng)


def test_the_test_sees_a_missing_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    model = PrefixModel()
    exact = enumerate_exactly(model, PLAIN, full_model)
    monkeypatch.setattr(decode, "accept_drafts", without_residual)
    fields = {"mode": "lossless", "draft_exit": 0, "draft_length": 2}
    assert p_value(model, PLAIN, exact, **fields) < 1e-9


def test_the_test_sees_the_wrong_exit() -> None:
    """Sampling the full model where an early exit was taken would fail it."""
    model = PrefixModel()
    exact = enumerate_exactly(model, SHAPED, early_exit)
    assert p_value(model, SHAPED, exact) < 1e-9
