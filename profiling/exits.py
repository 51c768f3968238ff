"""Bytes and joules that leaving early saves, exit by exit: pure arithmetic over one token of one sequence.

A token that leaves at an exit has read the weights and the cache of the layers up to there, the head of that
exit, and whatever the exits on the way were asked with: an output matrix each, if by their logits. This is
the cost to beat (Schuster et al. 2022, CALM: on two of its tasks it ate the savings).

What the skipped layers still owe the cache depends on the KV policy (:mod:`lit_eff.runtime.segments`):

- ``deferred``: their keys and values, written when the next token goes deeper, whose pass reads the weights
  for both; until then the hidden state waits in memory.
- ``recompute``: the same, and the layers before the exit once more, but for their weights.
- ``propagate``: their key and value projections are read, and keys and values written, at once.
- ``exact``: everything, at once.

Norms, biases and activations are left out: they are less than a thousandth of the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from lit_eff.errors import UserError
from lit_eff.profiling.report import ReportTable
from lit_eff.profiling.traffic import Number

Policy = Literal["deferred", "recompute", "propagate", "exact"]


@dataclass(frozen=True)
class ExitModel:
    """A model's sizes, all in bytes but ``exit_layers``: layers run at each exit, the last being all.

    Attributes:
        layer: weights of one layer.
        key_value_weights: of these, W_K and W_V.
        slot: keys and values of one token in one layer.
        heads: what each exit's head reads, its output matrix included.
        state: a hidden state, and a row of the embedding.
    """

    exit_layers: tuple[int, ...]
    layer: int
    key_value_weights: int
    slot: int
    heads: tuple[int, ...]
    state: int

    def __post_init__(self) -> None:
        if len(self.heads) != len(self.exit_layers) or any(a >= b for a, b in pairwise(self.exit_layers)):
            raise UserError(
                f"{len(self.heads)} heads for exits after layers {list(self.exit_layers)}; expected one for "
                "each, and increasing layers"
            )


@dataclass(frozen=True)
class Checks:
    """How exits are asked: which early ones, and what is read to ask one.

    ``reads_logits`` reads the exit's head; otherwise a classifier of hidden states reads ``score_bytes``.
    """

    policy: Policy
    asked: tuple[bool, ...]
    reads_logits: bool
    score_bytes: int = 0


@dataclass(frozen=True)
class ExitBytes:
    """Bytes moved for a token that leaves after ``layers`` layers; ``checks`` are those of exits not taken.

    ``cache`` is read and written, now or later; ``saved`` is against the whole model without exits, negative
    where checks cost more than is skipped.
    """

    layers: int
    weights: int
    cache: int
    checks: int
    head: int
    saved: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.checks + self.head


def full_bytes(model: ExitModel, context: int) -> int:
    """Bytes of a token through the whole model and its last head; ``context`` as in :func:`exit_bytes`."""
    return _layers_run(model, model.exit_layers[-1], context) + model.state + model.heads[-1]


def exit_bytes(model: ExitModel, checks: Checks, context: int) -> tuple[ExitBytes, ...]:
    """For every exit, shallow to deep, what a token that leaves there moves.

    Args:
        context: cache slots that the token attends to, its own included.

    Raises:
        UserError: for other than one ``asked`` an early exit, or no context.
    """
    early = len(model.exit_layers) - 1
    if len(checks.asked) != early or context < 1:
        raise UserError(
            f"{len(checks.asked)} exits asked or not, context {context}; expected {early} and at least 1"
        )
    whole, last = full_bytes(model, context), model.exit_layers[-1]
    found = []
    for index, layers in enumerate(model.exit_layers):
        run = last if checks.policy == "exact" else layers
        skipped = last - run
        weights = run * model.layer + model.state
        cache = run * model.slot * (context + 1) + skipped * model.slot
        if skipped and checks.policy == "propagate":
            weights += skipped * model.key_value_weights
        if skipped and checks.policy == "deferred":
            cache += 2 * model.state
        if skipped and checks.policy == "recompute":
            weights += model.state
            cache += run * model.slot
        asked = [i for i in range(min(index + 1, early)) if checks.asked[i]]
        if checks.reads_logits:
            read = sum(model.heads[i] for i in asked if i < index)
        else:
            read = len(asked) * checks.score_bytes
        head = model.heads[index]
        found.append(ExitBytes(layers, weights, cache, read, head, whole - weights - cache - read - head))
    return tuple(found)


def expected_bytes(costs: Sequence[ExitBytes], shares: Sequence[float]) -> float:
    """Mean bytes a token, where ``shares`` of the tokens leave at each exit.

    Raises:
        UserError: for shares that do not fit the exits.
    """
    if len(shares) != len(costs) or abs(sum(shares) - 1) > 1e-6:
        raise UserError(
            f"exit shares {list(shares)} for {len(costs)} exits; expected one for each, and a sum of 1"
        )
    return sum(share * cost.total for share, cost in zip(shares, costs, strict=True))


def break_even_share(model: ExitModel, checks: Checks, context: int, index: int) -> float:
    """Share of tokens that must leave at exit ``index`` before asking it, and no other, saves bytes.

    Infinite where leaving there saves nothing; 0 where asking costs nothing.
    """
    alone = Checks(
        checks.policy,
        tuple(i == index for i in range(len(checks.asked))),
        checks.reads_logits,
        checks.score_bytes,
    )
    costs = exit_bytes(model, alone, context)
    gained, lost = costs[index].saved, -costs[-1].saved
    return lost / (gained + lost) if gained > 0 else float("inf")


def energy_per_byte(watts: float, bytes_per_second: float) -> Number:
    """Joules a byte of a device that waits for its memory, as decoding one sequence does."""
    return Number(
        watts / bytes_per_second,
        "modelled",
        f"{watts:g} W over {bytes_per_second / 1e9:g} GB/s: decoding waits for memory",
    )


def exits_table(
    model: ExitModel,
    checks: Checks,
    context: int,
    joules_per_byte: Number,
    shares: Sequence[float] | None = None,
) -> ReportTable:
    """A row an exit: bytes of a token that leaves there, bytes and joules saved, and when asking it pays.

    With ``shares``, of tokens that leave at each exit, a last row holds the mean token.

    Raises:
        UserError: as :func:`exit_bytes` and :func:`expected_bytes`.
    """
    costs, whole = exit_bytes(model, checks, context), full_bytes(model, context)
    rows: list[tuple[str | float | None, ...]] = [
        (
            f"layer {cost.layers}",
            shares[index] if shares is not None else None,
            cost.weights / 1e6,
            cost.cache / 1e6,
            cost.checks / 1e6,
            cost.head / 1e6,
            cost.total / 1e6,
            *_saved(cost.saved, whole, joules_per_byte),
            break_even_share(model, checks, context, index) if index < len(costs) - 1 else None,
        )
        for index, cost in enumerate(costs)
    ]
    if shares is not None:
        mean = expected_bytes(costs, shares)
        saved = _saved(whole - mean, whole, joules_per_byte)
        rows.append(("mean token", 1.0, None, None, None, None, mean / 1e6, *saved, None))
    how = "its head" if checks.reads_logits else f"{checks.score_bytes:,} bytes of a classifier"
    where = f"{joules_per_byte.source}: {joules_per_byte.detail}".rstrip(": ")
    return ReportTable(
        "What leaving early saves",
        f"A token at a context of {context:,}, KV policy {checks.policy}, {sum(checks.asked)} exits asked, "
        f"each by reading {how}. Bytes are modelled, against {whole / 1e6:,.4g} MB of the whole model "
        f"without exits. Joules are bytes times joules a byte ({where}). An exit pays from the break-even "
        "share of tokens on.",
        (
            "leaves at",
            "share of tokens",
            "weights, MB",
            "cache, MB",
            "checks, MB",
            "head, MB",
            "total, MB",
            "saved, MB",
            "saved",
            "J saved",
            "break-even share",
        ),
        tuple(rows),
    )


def _layers_run(model: ExitModel, layers: int, context: int) -> int:
    return layers * (model.layer + model.slot * (context + 1))


def _saved(saved: float, whole: int, joules_per_byte: Number) -> tuple[float, float, float | None]:
    joules = None if joules_per_byte.value is None else saved * joules_per_byte.value
    return saved / 1e6, saved / whole, joules
