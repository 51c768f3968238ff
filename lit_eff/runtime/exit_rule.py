"""When a token may leave at an early exit: confidence measures and thresholds (CALM, Schuster et al. 2022).

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_eff.errors import UserError

Measure = Literal["softmax_response", "max_probability", "entropy"]
Thresholds = tuple[float | None, ...]  # one per early exit, shallow to deep; None never exits there


def _softmax(logits_NV: NDArray[Any]) -> NDArray[np.float32]:
    logits_NV = np.asarray(logits_NV, np.float32)
    weights_NV = np.exp(logits_NV - logits_NV.max(axis=-1, keepdims=True))
    return np.asarray(weights_NV / weights_NV.sum(axis=-1, keepdims=True, dtype=np.float32))


def _max_probability(logits_NV: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(_softmax(logits_NV).max(axis=-1))


def _softmax_response(logits_NV: NDArray[Any]) -> NDArray[np.float32]:
    p_NV = _softmax(logits_NV)
    best_N1 = p_NV.argmax(axis=-1)[..., None]
    top_N = np.take_along_axis(p_NV, best_N1, axis=-1)[..., 0]
    np.put_along_axis(p_NV, best_N1, -1.0, axis=-1)  # the second best is the best of what is left
    return np.asarray(top_N - np.maximum(p_NV.max(axis=-1), 0.0))


def _negative_entropy(logits_NV: NDArray[Any]) -> NDArray[np.float32]:
    p_NV = _softmax(logits_NV)
    vocabulary = p_NV.shape[-1]
    if vocabulary == 1:
        return np.ones(p_NV.shape[:-1], np.float32)
    nats_NV = p_NV * np.log(np.where(p_NV > 0, p_NV, 1.0), dtype=np.float32)
    return np.asarray(1.0 + nats_NV.sum(axis=-1, dtype=np.float32) / np.float32(math.log(vocabulary)))


MEASURES: dict[str, Callable[[NDArray[Any]], NDArray[np.float32]]] = {
    "softmax_response": _softmax_response,
    "max_probability": _max_probability,
    "entropy": _negative_entropy,
}


@dataclass(frozen=True)
class ExitRule:
    """A token leaves at exit ``e`` when its confidence there reaches the threshold of ``e``.

    Every measure grows with certainty and lies in [0, 1], computed in float32 from the exit's own logits
    (before temperature, penalties and truncation): ``softmax_response`` is the gap between the two largest
    probabilities, ``max_probability`` the largest, ``entropy`` is ``1 - H / ln V``.

    Attributes:
        thresholds: one per exit index, shallow to deep; ``None`` never exits there. The full model's head
            always decides, so a threshold for the last exit is not looked at and may be left out.
        decay: CALM's tau. With it the threshold of generated token ``t`` is
            ``clip(0.9 lambda + 0.1 exp(-tau t / horizon), 0, 1)``, strict at first and relaxing later
            (equation 5). ``None`` keeps the threshold constant. With a decay ``lambda = 1`` is not "never
            exit": a threshold of ``None`` is.
        horizon: CALM's N, the number of generated tokens the decay stretches over. Read only with a decay.

    Raises:
        UserError: for an unknown measure, a threshold outside [0, 1], a negative decay or a horizon below 1.
    """

    measure: Measure = "softmax_response"
    thresholds: tuple[float | None, ...] = ()
    decay: float | None = None
    horizon: int = 512

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise UserError(
                f"confidence measure {self.measure!r} is unknown; expected one of {', '.join(MEASURES)}"
            )
        for threshold in self.thresholds:
            if threshold is not None and not 0.0 <= threshold <= 1.0:
                raise UserError(
                    f"exit threshold {threshold} is outside [0, 1]; use null (None) for never exiting"
                )
        if self.decay is not None and self.decay < 0:
            raise UserError(f"exit decay is {self.decay}; expected a number of at least 0, or null for none")
        if self.horizon < 1:
            raise UserError(f"exit horizon is {self.horizon}; expected a positive number of tokens")

    def checks(self, exit_index: int) -> bool:
        """Whether a token can leave here at all: where it cannot, the head need not be computed."""
        return exit_index < len(self.thresholds) and self.thresholds[exit_index] is not None

    def confidence(self, logits_NV: NDArray[Any]) -> NDArray[np.float32]:
        """Confidence of each row, float32 ``(N,)``, from logits ``(N, V)`` of any float type."""
        return MEASURES[self.measure](logits_NV)

    def threshold(self, exit_index: int, t: ArrayLike) -> NDArray[np.float32]:
        """The threshold of generated token ``t`` (0 for the first), float32, in the shape of ``t``.

        ``inf`` where the exit is never taken.
        """
        steps = np.asarray(t, np.float64)
        limit = self.thresholds[exit_index] if self.checks(exit_index) else None
        if limit is None:
            return np.full(steps.shape, np.inf, np.float32)
        if self.decay is None:
            return np.full(steps.shape, limit, np.float32)
        relaxed = 0.9 * limit + 0.1 * np.exp(-self.decay * steps / self.horizon)
        return np.clip(relaxed, 0.0, 1.0).astype(np.float32)

    def should_exit(self, exit_index: int, confidence: ArrayLike, t: ArrayLike) -> NDArray[np.bool_]:
        """``confidence >= threshold(exit_index, t)``, compared in float32; arguments broadcast."""
        return np.asarray(np.asarray(confidence, np.float32) >= self.threshold(exit_index, t))


def parse_thresholds(text: str, early_exits: int) -> tuple[float | None, ...]:
    """Thresholds as typed by a person: ``0.8`` for every early exit, or ``never,0.8,0.6``, shallow to deep.

    Raises:
        UserError: naming the part that is no number, or a wrong count.
    """
    values: list[float | None] = []
    for part in text.split(","):
        try:
            values.append(None if part.strip() == "never" else float(part))
        except ValueError:
            raise UserError(f"exit threshold {part!r} is neither a number in [0, 1] nor `never`") from None
    if len(values) not in (1, early_exits):
        raise UserError(f"{len(values)} exit thresholds were given; this model has {early_exits} early exits")
    return tuple(values * early_exits if len(values) == 1 else values)
