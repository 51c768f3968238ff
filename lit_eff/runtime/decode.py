"""Decoding rounds over any :class:`~lit_eff.runtime.segments.SegmentRunner`, one sequence at a time.

- ``autoregressive``: every token through the whole model.
- ``certified``: a token leaves at the first exit confident enough for the exit rule (CALM, Schuster et al.
  2022); its KV policy is the exit rule's.
- ``lossless``: self-speculation (LayerSkip, Elhoushi et al. 2024): a shallow exit drafts G tokens, the deeper
  segments check them all in one call, and Leviathan's rule keeps what leaves the output distribution that of
  the full model. Drafting and checking share every layer and the cache.

Prompt tokens wait in the same queues as any other token: their deep layers run when a token first needs them.

Shapes: V vocabulary, G draft length (drafts of one round).
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from lit_eff.errors import UserError, nearest
from lit_eff.runtime.confidence import LOGIT_MEASURES, classifier, hidden_saturation, patience
from lit_eff.runtime.exit_rule import ExitRule
from lit_eff.runtime.sampling import (
    NO_HISTORY,
    Distribution,
    History,
    SamplingParams,
    accept_drafts,
    accept_greedy,
    draw,
    greedy_token,
    target_distribution,
)
from lit_eff.runtime.segments import Hidden, SegmentedSequence, SegmentRunner

__all__ = ["FinishReason", "GenerateRequest", "Mode", "Round", "SegmentRunner", "generate"]

Mode = Literal["autoregressive", "certified", "lossless"]
FinishReason = Literal["stop", "length"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class GenerateRequest:
    """What to generate.

    Attributes:
        prompt_tokens: at least one token.
        max_tokens: tokens to emit at most; the context may end the output earlier.
        stop_tokens: the output ends with the first of these (which is emitted).
        draft_exit: exit index that drafts in ``lossless`` mode; below the last.
        draft_length: G; 0 is plain autoregression.
        exit_rule: when to leave early in ``certified`` mode.
    """

    prompt_tokens: tuple[int, ...]
    max_tokens: int = 128
    mode: Mode = "autoregressive"
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop_tokens: frozenset[int] = frozenset()
    draft_exit: int = 0
    draft_length: int = 4
    exit_rule: ExitRule | None = None


@dataclass(frozen=True)
class Round:
    """One step of decoding.

    Attributes:
        tokens: emitted, in order: the accepted drafts, then the target's own token (absent when an accepted
            draft was a stop token).
        drafted: what the shallow exit proposed.
        accepted: how many drafts were emitted; ``tokens[:accepted] == drafted[:accepted]``.
        exit_index: the exit the token came from; ``None`` for a speculative round.
        layer_launches: layers called in this round.
        layer_tokens: layers x tokens computed in this round, deferred ones and the prompt included.
        seconds: wall time of the round.
        finish_reason: on the last round only.
        confidences: exit index and confidence wherever the exit rule was asked, shallow to deep.
    """

    tokens: tuple[int, ...]
    drafted: tuple[int, ...]
    accepted: int
    exit_index: int | None
    layer_launches: int
    layer_tokens: int
    seconds: float
    finish_reason: FinishReason | None
    confidences: tuple[tuple[int, float], ...] = ()


def generate(runner: SegmentRunner, request: GenerateRequest) -> Generator[Round, None, None]:
    """Decode round by round; nothing is computed between rounds, and closing the iterator ends the work.

    The same request with a seed yields the same rounds. Greedy ``lossless`` output equals ``autoregressive``
    output wherever the runner is row-invariant.

    Raises:
        UserError: before anything runs, for a request this runner cannot serve.
    """
    check_request(runner, request)
    return _rounds(runner, request)


def check_request(runner: SegmentRunner, request: GenerateRequest) -> None:
    """Raises UserError for a request this runner cannot serve."""
    prompt, exits = request.prompt_tokens, len(runner.exit_layers)
    if not prompt:
        raise UserError("the prompt is empty; give at least one token")
    for token in prompt:
        if not 0 <= token < runner.vocab_size:
            raise UserError(f"prompt token {token} is outside the vocabulary of {runner.vocab_size} tokens")
    if len(prompt) >= runner.context:
        raise UserError(
            f"the prompt has {len(prompt)} tokens and the context holds {runner.context}; "
            f"shorten the prompt to at most {runner.context - 1}"
        )
    if request.max_tokens < 1:
        raise UserError(f"max_tokens is {request.max_tokens}; expected at least 1")
    highest = max(request.sampling.logit_bias, default=0)
    if highest >= runner.vocab_size:
        raise UserError(f"logit_bias names token {highest}; the vocabulary has {runner.vocab_size} tokens")
    if request.mode not in MODES:
        raise UserError(f"unknown mode {request.mode!r}{nearest(request.mode, MODES)}")
    if request.mode == "lossless":
        if exits == 1:
            raise UserError("mode lossless needs an early exit to draft with, and this model has none")
        if not 0 <= request.draft_exit < exits - 1:
            raise UserError(f"draft exit index is {request.draft_exit}; expected 0 to {exits - 2}")
        if request.draft_length < 0:
            raise UserError(f"draft_length is {request.draft_length}; expected at least 0")
    if request.mode == "certified":
        if request.exit_rule is None:
            raise UserError("mode certified needs an exit rule, and none was given")
        thresholds = len(request.exit_rule.thresholds)
        if thresholds not in (exits - 1, exits):
            raise UserError(
                f"the exit rule has {thresholds} thresholds; this model has {exits - 1} early exits "
                f"(after layers {list(runner.exit_layers[:-1])})"
            )


class _Choice(NamedTuple):
    """The outcome of a round before stop tokens are looked for."""

    tokens: list[int]
    drafted: list[int]
    exit_index: int | None
    confidences: tuple[tuple[int, float], ...] = ()


def _rounds(runner: SegmentRunner, request: GenerateRequest) -> Generator[Round, None, None]:
    rule = request.exit_rule if request.mode == "certified" else None
    policy = "deferred" if rule is None else rule.kv_policy
    sequence = SegmentedSequence(runner, request.prompt_tokens, policy)
    rng = np.random.default_rng(request.sampling.seed)
    room = min(request.max_tokens, runner.context - len(request.prompt_tokens))
    finish: FinishReason | None = None
    while finish is None:
        started = time.perf_counter()
        launches, layer_tokens = sequence.layer_launches, sequence.layer_tokens
        if request.mode == "lossless":
            choice = _speculate(sequence, request, rng, drafts=min(request.draft_length, room - 1))
        else:
            choice = _step(sequence, request, rule, rng)
        tokens = choice.tokens
        stop_at = next((i for i, token in enumerate(tokens) if token in request.stop_tokens), None)
        if stop_at is not None:
            tokens, finish = tokens[: stop_at + 1], "stop"
        room -= len(tokens)
        if finish is None and room == 0:
            finish = "length"
        yield Round(
            tokens=tuple(tokens),
            drafted=tuple(choice.drafted),
            accepted=min(len(choice.tokens) - 1, len(tokens)),
            exit_index=choice.exit_index,
            layer_launches=sequence.layer_launches - launches,
            layer_tokens=sequence.layer_tokens - layer_tokens,
            seconds=time.perf_counter() - started,
            finish_reason=finish,
            confidences=choice.confidences,
        )


def _history(sequence: SegmentedSequence, request: GenerateRequest, end: int) -> History:
    """The tokens before position ``end``, when the sampling parameters read them."""
    if not request.sampling.reads_history:
        return NO_HISTORY
    return History(request.prompt_tokens, sequence.tokens[len(request.prompt_tokens) : end])


def _step(
    sequence: SegmentedSequence, request: GenerateRequest, rule: ExitRule | None, rng: np.random.Generator
) -> _Choice:
    """One token: deeper and deeper until an exit is confident enough, or the model ends."""
    t = len(sequence.tokens) - len(request.prompt_tokens)
    last = len(sequence.exit_layers) - 1
    asked = None if rule is None else _Asked(rule, sequence)
    confidences = []
    for e in range(last + 1):
        hidden_1C = sequence.run(e)[-1:]
        logits_V = None
        if e == last or asked is None or not asked.rule.checks(e):
            continue
        if asked.rule.reads_logits:
            logits_V = sequence.head(e, hidden_1C)[0]
        confidence = asked.confidence(hidden_1C, logits_V)
        confidences.append((e, confidence))
        if asked.rule.should_exit(e, confidence, t):
            break
    if logits_V is None:
        logits_V = sequence.head(e, hidden_1C)[0]
    if e < last:
        sequence.leave(e)
    history = _history(sequence, request, len(sequence.tokens))
    if request.sampling.greedy:
        token = greedy_token(logits_V, request.sampling, history)
    else:
        token = draw(target_distribution(logits_V, request.sampling, history), rng)
    sequence.tokens.append(token)
    return _Choice([token], [], e, tuple(confidences))


class _Asked:
    """The exits asked about one token, shallow to deep: how confident each is."""

    def __init__(self, rule: ExitRule, sequence: SegmentedSequence) -> None:
        self.rule = rule
        self._sequence = sequence
        self._predicted = -1
        self._streak = 0  # exits in a row that predicted what the one before them did

    def confidence(self, hidden_1C: Hidden, logits_V: NDArray[np.float32] | None) -> float:
        """At the exit whose segment ran last, by :mod:`lit_eff.runtime.confidence`."""
        measure = self.rule.measure
        if measure == "hidden_saturation":
            return float(hidden_saturation(hidden_1C[0], self._sequence.entered_C))
        if measure == "classifier":
            return float(classifier(self._sequence.exit_score(hidden_1C)[0]))
        assert logits_V is not None
        if measure == "patience":
            predicted = int(logits_V.argmax())
            self._streak = self._streak + 1 if predicted == self._predicted else 0
            self._predicted = predicted
            return float(patience(self._streak, len(self._sequence.exit_layers) - 1))
        return float(LOGIT_MEASURES[measure](logits_V))


def _speculate(
    sequence: SegmentedSequence, request: GenerateRequest, rng: np.random.Generator, drafts: int
) -> _Choice:
    """Draft with the shallow segments, check with the deep ones, keep what the target agrees to."""
    params, start = request.sampling, len(sequence.tokens)
    drafted: list[int] = []
    q_rows: list[Distribution] = []
    while len(drafted) < drafts:
        for e in range(request.draft_exit + 1):
            hidden_TC = sequence.run(e)
        logits_V = sequence.head(request.draft_exit, hidden_TC[-1:])[0]
        history = _history(sequence, request, start + len(drafted))
        if params.greedy:
            token = greedy_token(logits_V, params, history)
        else:
            q_rows.append(target_distribution(logits_V, params, history))
            token = draw(q_rows[-1], rng)
        drafted.append(token)
        sequence.tokens.append(token)
        if token in request.stop_tokens:
            break  # nothing after it could be emitted
    last = len(sequence.exit_layers) - 1
    for e in range(last + 1):  # the newest token everywhere; deeper than the draft exit, all that waits
        hidden_TC = sequence.run(e)
    logits_GV = sequence.head(last, hidden_TC[-len(drafted) - 1 :])

    histories = (_history(sequence, request, start + i) for i in range(len(drafted) + 1))
    targets = zip(logits_GV, histories, strict=True)
    if params.greedy:
        accepted, own = accept_greedy((greedy_token(row_V, params, past) for row_V, past in targets), drafted)
    else:
        p_rows = (target_distribution(row_V, params, past) for row_V, past in targets)
        accepted, own = accept_drafts(p_rows, q_rows, drafted, rng)
    sequence.truncate(start + accepted)
    sequence.tokens.append(own)
    return _Choice([*drafted[:accepted], own], drafted, None)
