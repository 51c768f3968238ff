"""What a token is drawn from, and which drafted tokens are kept.

The target distribution p is always the *processed* one: logit bias, penalties, temperature, top-k, top-p and
min-p, in this order. Speculative acceptance (Leviathan et al. 2023, algorithm 1) compares p with the very
distribution q that drew the draft, so both go through :func:`target_distribution` with the same parameters.

Shapes: V vocabulary, G draft length.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_eff.errors import UserError

Distribution = NDArray[np.float64]


@dataclass(frozen=True)
class SamplingParams:
    """How logits become a distribution.

    Attributes:
        temperature: divides the logits; 0 is greedy (the largest logit, the lowest index among equals).
        top_k: keep this many most probable tokens; among equals the lower index is kept.
        top_p: keep the fewest most probable tokens whose probabilities reach this sum (Holtzman et al. 2020).
        min_p: keep tokens at least this fraction as probable as the most probable one.
        seed: of the random numbers; ``None`` draws a fresh one each time.
        repetition_penalty: logits of tokens in the prompt or the output are divided by it where positive and
            multiplied where negative (Keskar et al. 2019); 1 is off.
        presence_penalty, frequency_penalty: subtracted once, and once per occurrence, from the logits of
            tokens in the output (OpenAI); 0 is off.
        logit_bias: added to the logits of single tokens of the vocabulary.

    Raises:
        UserError: naming the parameter that is out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ranges = (
            ("temperature", 0 <= self.temperature < math.inf, "a number of at least 0 (0 is greedy)"),
            ("top_k", self.top_k is None or self.top_k >= 1, "a positive count, or null for all tokens"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "a number in (0, 1]"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "a number in [0, 1]"),
            ("seed", self.seed is None or self.seed >= 0, "an integer of at least 0"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a positive number (1 is off)"),
            ("presence_penalty", math.isfinite(self.presence_penalty), "a finite number (0 is off)"),
            ("frequency_penalty", math.isfinite(self.frequency_penalty), "a finite number (0 is off)"),
            ("logit_bias", min(self.logit_bias, default=0) >= 0, "token ids of at least 0"),
        )
        for name, valid, expected in ranges:
            if not valid:
                raise UserError(f"{name} is {getattr(self, name)}; expected {expected}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def reads_history(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


class History(NamedTuple):
    """Tokens before the one being chosen, drafted ones included."""

    prompt: Sequence[int] = ()
    output: Sequence[int] = ()


NO_HISTORY = History()


def processed_logits(logits_V: NDArray[Any], params: SamplingParams, history: History) -> NDArray[Any]:
    """Logits ``(V,)`` after bias and penalties; the input itself, in its own type, when nothing is set.

    Raises:
        UserError: when the largest logit is not finite.
    """
    if params.logit_bias or params.reads_history:
        logits_V = logits_V.astype(np.float64)
        for token, bias in params.logit_bias.items():
            logits_V[token] += bias
    if params.reads_history:
        output = np.asarray(history.output, np.int64)
        seen = np.union1d(np.asarray(history.prompt, np.int64), output)
        penalty = params.repetition_penalty
        logits_V[seen] = np.where(logits_V[seen] > 0, logits_V[seen] / penalty, logits_V[seen] * penalty)
        tokens, counts = np.unique(output, return_counts=True)
        logits_V[tokens] -= params.presence_penalty + params.frequency_penalty * counts
    if not np.isfinite(logits_V.max()):
        raise UserError(
            f"the model's largest logit is {logits_V.max()}; its weights or its inputs are broken"
        )
    return logits_V


def greedy_token(logits_V: NDArray[Any], params: SamplingParams, history: History = NO_HISTORY) -> int:
    """The token that ``temperature = 0`` chooses; ties go to the lowest index."""
    return int(processed_logits(logits_V, params, history).argmax())


def target_distribution(
    logits_V: NDArray[Any], params: SamplingParams, history: History = NO_HISTORY
) -> Distribution:
    """The processed distribution, float64 ``(V,)`` summing to 1, from logits ``(V,)`` of any float type.

    Greedy gives a one-hot. Each truncation renormalises, so top-p reads the distribution that top-k left.
    """
    logits_V = processed_logits(logits_V, params, history)
    if params.greedy:
        p_V = np.zeros(len(logits_V))
        p_V[logits_V.argmax()] = 1.0
        return p_V
    scaled_V = logits_V.astype(np.float64)
    p_V = np.exp((scaled_V - scaled_V.max()) / params.temperature)
    if params.top_k is not None and params.top_k < len(p_V):
        p_V = _keep(p_V, _top_k(p_V, params.top_k))
    if params.top_p is not None and params.top_p < 1:
        p_V = _keep(p_V, _nucleus(p_V / p_V.sum(), params.top_p))
    if params.min_p is not None:
        p_V[p_V < params.min_p * p_V.max()] = 0.0
    return np.asarray(p_V / p_V.sum())


def _keep(p_V: Distribution, tokens: NDArray[np.intp]) -> Distribution:
    kept_V = np.zeros_like(p_V)
    kept_V[tokens] = p_V[tokens]
    return kept_V


def _top_k(p_V: Distribution, k: int) -> NDArray[np.intp]:
    border = np.partition(p_V, len(p_V) - k)[len(p_V) - k]
    above, equal = np.flatnonzero(p_V > border), np.flatnonzero(p_V == border)
    return np.concatenate([above, equal[: k - len(above)]])


def _nucleus(p_V: Distribution, top_p: float) -> NDArray[np.intp]:
    # Tokens below (1 - top_p) / V hold less than 1 - top_p together, so the nucleus lies in the others:
    # sorting those few instead of a whole vocabulary changes nothing but the time.
    likely = np.flatnonzero(p_V >= (1 - top_p) / len(p_V))
    order = likely[np.argsort(-p_V[likely], kind="stable")]
    reached = int(np.searchsorted(np.cumsum(p_V[order]), top_p))
    return order[: reached + 1]


def draw(weights_V: NDArray[np.float64], rng: np.random.Generator) -> int:
    """One token with probability proportional to ``weights_V``, by inversion: one random number a draw.

    ``random() <= 1 - 2^-53``, whose product with the total rounds below the total, so the index found is
    always one of positive weight.
    """
    cumulative_V = np.cumsum(weights_V)
    return int(np.searchsorted(cumulative_V, rng.random() * cumulative_V[-1], side="right"))


def accept_drafts(
    p_rows: Iterable[Distribution],
    q_rows: Sequence[Distribution],
    drafts: Sequence[int],
    rng: np.random.Generator,
) -> tuple[int, int]:
    """Leviathan et al. 2023, algorithm 1: keep a prefix of the drafts and choose the token after it.

    Args:
        p_rows: the target's distributions ``(V,)`` at the G drafted positions and the one after, G + 1 in
            all; a generator is read no further than the first rejection.
        q_rows: the distributions the G drafts were drawn from.
        drafts: the G tokens.
        rng: random numbers never used before.

    Returns:
        How many drafts were accepted, and the target's own next token: from ``norm(max(0, p - q))`` at the
        first rejection, or from the last p when all were accepted. What is emitted is distributed as p.
    """
    targets = iter(p_rows)
    for i, (token, q_V) in enumerate(zip(drafts, q_rows, strict=True)):
        p_V = next(targets)
        if rng.random() * q_V[token] < p_V[token]:
            continue
        residual_V = np.maximum(p_V - q_V, 0.0)
        # Rounding can leave no residual only where p and q are equal to the last bits: then p is it.
        return i, draw(residual_V if residual_V.any() else p_V, rng)
    return len(drafts), draw(next(targets), rng)


def accept_greedy(target_tokens: Iterable[int], drafts: Sequence[int]) -> tuple[int, int]:
    """Greedy acceptance is agreement: keep drafts while they equal the target's tokens (G + 1 of them)."""
    targets = iter(target_tokens)
    for i, token in enumerate(drafts):
        target = next(targets)
        if token != target:
            return i, target
    return len(drafts), next(targets)
