"""Decoding rounds of any engine under the clock: every call of a segment or head is a span in its round.

Torch-free, as are the engines' protocol and the rounds themselves.

Shapes: T tokens of one call, C model dim, V vocabulary.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_eff.profiling.report import ReportTable
from lit_eff.profiling.rounds import round_span
from lit_eff.profiling.timeline import Span, Timeline
from lit_eff.runtime.decode import GenerateRequest, Round, generate
from lit_eff.runtime.segments import Hidden, SegmentRunner

OWN = "sampling and rules"  # of a round, what no call of the engine took


@dataclass(frozen=True)
class _Call:
    """``exit_index`` is that of a head, None for others."""

    stage: str
    exit_index: int | None
    start: float
    seconds: float
    tokens: int


class TimedRunner:
    """An engine that keeps when each of its calls began and how long it took."""

    def __init__(self, runner: SegmentRunner) -> None:
        self._runner = runner
        self.exit_layers, self.vocab_size, self.context = (
            runner.exit_layers,
            runner.vocab_size,
            runner.context,
        )
        self.calls: list[_Call] = []

    def new_state(self) -> Any:
        return self._runner.new_state()

    def embed(self, tokens_T: NDArray[np.int64], start: int) -> Hidden:
        began = time.perf_counter()
        hidden_TC = self._runner.embed(tokens_T, start)
        return self._keep("embedding", began, hidden_TC, len(tokens_T))

    def run_segment(self, state: Any, e: int, hidden_TC: Hidden, start: int) -> Hidden:
        began = time.perf_counter()
        out_TC = self._runner.run_segment(state, e, hidden_TC, start)
        return self._keep(self._layers(e), began, out_TC, len(hidden_TC))

    def head(self, e: int, hidden_TC: Hidden) -> NDArray[np.float32]:
        began = time.perf_counter()
        logits_TV = self._runner.head(e, hidden_TC)
        return self._keep(f"head of layer {self.exit_layers[e]}", began, logits_TV, len(hidden_TC), e)

    def exit_score(self, hidden_TC: Hidden) -> NDArray[np.float32]:
        began = time.perf_counter()
        score_T = self._runner.exit_score(hidden_TC)
        return self._keep("exit classifier", began, score_T, len(hidden_TC))

    def propagate(self, state: Any, e: int, hidden_TC: Hidden, start: int) -> None:
        began = time.perf_counter()
        self._runner.propagate(state, e, hidden_TC, start)
        self._keep(f"propagation to {self._layers(e)}", began, hidden_TC, len(hidden_TC))

    def _layers(self, e: int) -> str:
        first = self.exit_layers[e - 1] + 1 if e else 1
        return f"layers {first}-{self.exit_layers[e]}"

    def _keep(
        self, stage: str, began: float, result: NDArray[Any], tokens: int, e: int | None = None
    ) -> NDArray[Any]:
        self.calls.append(_Call(stage, e, began, time.perf_counter() - began, tokens))
        return result


@dataclass
class _Mode:
    """Sums over the rounds of one mode. Each request's first round, which reads the prompt, is apart."""

    rounds: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    layer_tokens: int = 0
    seconds: float = 0.0
    first_rounds: int = 0
    first_seconds: float = 0.0

    def add(self, one: Round) -> None:
        self.rounds += 1
        self.tokens += len(one.tokens)
        self.drafted += len(one.drafted)
        self.accepted += one.accepted
        self.layer_tokens += one.layer_tokens
        self.seconds += one.seconds


@dataclass(frozen=True)
class RoundsProfile:
    """``tables``: the modes beside one another, their rounds by stage, and the exits taken."""

    timeline: Timeline
    tables: tuple[ReportTable, ...]


def profile_rounds(runner: SegmentRunner, requests: Sequence[GenerateRequest]) -> RoundsProfile:
    """Decode ``requests`` one after the other, with each round and each call in it timed.

    Raises:
        UserError: for a request this engine cannot serve.
    """
    timed = TimedRunner(runner)
    timeline = Timeline()
    modes: dict[str, _Mode] = {}
    stages: dict[tuple[str, str], list[_Call]] = {}
    exits: Counter[tuple[str, int]] = Counter()
    zero = time.perf_counter()
    for number, request in enumerate(requests):
        sums = modes.setdefault(request.mode, _Mode())
        track = f"decoding/{request.mode}"
        first = True
        for one in generate(timed, request):
            end = time.perf_counter() - zero
            timeline.spans.append(
                round_span(one, request.mode, runner.exit_layers, track, end, request=number)
            )
            calls = _staged(timed.calls, one, request)
            timeline.spans += (
                Span(call.stage, track, call.start - zero, call.seconds, {"tokens": call.tokens})
                for call in calls
            )
            timed.calls.clear()
            if one.exit_index is not None:
                exits[request.mode, runner.exit_layers[one.exit_index]] += 1
            if first:
                first = False
                sums.first_rounds += 1
                sums.first_seconds += one.seconds
                continue
            sums.add(one)
            for call in calls:
                stages.setdefault((request.mode, call.stage), []).append(call)
    return RoundsProfile(timeline, (_modes_table(modes), _stages_table(modes, stages), _exits_table(exits)))


def _staged(calls: Sequence[_Call], one: Round, request: GenerateRequest) -> list[_Call]:
    """A round's calls, drafting told from verifying: each draft ends with the drafting exit's head."""
    if request.mode != "lossless":
        return list(calls)
    drafts, staged = 0, []
    for call in calls:
        part = "draft" if drafts < len(one.drafted) else "verify"
        drafts += call.exit_index == request.draft_exit
        staged.append(_Call(f"{part}: {call.stage}", call.exit_index, call.start, call.seconds, call.tokens))
    return staged


def _modes_table(modes: dict[str, _Mode]) -> ReportTable:
    def per(value: float, count: int) -> float | None:
        return value / count if count else None

    return ReportTable(
        "Decoding rounds",
        "Of each mode, measured; the first round of each request, which reads the prompt, is apart.",
        (
            "mode",
            "rounds",
            "tokens a round",
            "drafts accepted",
            "layers a token",
            "ms a round",
            "tokens/s",
            "ms of a first round",
        ),
        tuple(
            (
                mode,
                sums.rounds,
                per(sums.tokens, sums.rounds),
                per(sums.accepted, sums.drafted),
                per(sums.layer_tokens, sums.tokens),
                per(1e3 * sums.seconds, sums.rounds),
                sums.tokens / sums.seconds if sums.seconds else None,
                per(1e3 * sums.first_seconds, sums.first_rounds),
            )
            for mode, sums in modes.items()
        ),
    )


def _stages_table(modes: dict[str, _Mode], stages: dict[tuple[str, str], list[_Call]]) -> ReportTable:
    rows: list[tuple[str | float | None, ...]] = []
    for mode, sums in modes.items():
        if not sums.rounds:
            continue
        own = sums.seconds
        for (of, stage), calls in stages.items():
            if of == mode:
                seconds = sum(call.seconds for call in calls)
                own -= seconds
                tokens = sum(call.tokens for call in calls) / len(calls)
                rows.append((mode, stage, len(calls) / sums.rounds, tokens, *_time(seconds, sums)))
        rows.append((mode, OWN, None, None, *_time(own, sums)))
    return ReportTable(
        "A decoding round by stage",
        "What a round of each mode spends its time on, measured call by call; first rounds left out.",
        ("mode", "stage", "calls a round", "tokens a call", "ms a round", "share"),
        tuple(rows),
    )


def _time(seconds: float, sums: _Mode) -> tuple[float, float]:
    return 1e3 * seconds / sums.rounds, seconds / sums.seconds


def _exits_table(exits: Counter[tuple[str, int]]) -> ReportTable:
    whole: Counter[str] = Counter()
    for (mode, _), tokens in exits.items():
        whole[mode] += tokens
    places: Iterable[tuple[str, int]] = sorted(exits)
    return ReportTable(
        "Exits taken",
        "Tokens by the layer they left at, measured; speculative rounds leave nowhere.",
        ("mode", "layer", "tokens", "share"),
        tuple((mode, layer, exits[mode, layer], exits[mode, layer] / whole[mode]) for mode, layer in places),
    )
