"""When a token may leave at an early exit: measure, thresholds and schedule (CALM, Schuster et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_eff.errors import UserError, nearest
from lit_eff.runtime.confidence import MEASURES, READS_NO_LOGITS, Measure

Thresholds = tuple[float | None, ...]  # one per early exit, shallow to deep; None never exits there

# How keys and values of the layers that a token skips come to be; see lit_eff.runtime.segments.
KVPolicy = Literal["deferred", "recompute", "exact", "propagate"]
KV_POLICIES: tuple[KVPolicy, ...] = get_args(KVPolicy)


@dataclass(frozen=True)
class ExitRule:
    """A token leaves at exit ``e`` when its confidence there reaches the threshold of ``e``.

    Attributes:
        measure: of confidence, see :mod:`lit_eff.runtime.confidence`.
        thresholds: one per exit index, shallow to deep; ``None`` never exits there. The full model's head
            always decides, so a threshold for the last exit is not looked at and may be left out.
        decay: CALM's tau. With it the threshold of generated token ``t`` is
            ``clip(0.9 lambda + 0.1 exp(-tau t / horizon), 0, 1)``, strict at first and relaxing later
            (equation 5). ``None`` keeps the threshold constant. With a decay ``lambda = 1`` is not "never
            exit": a threshold of ``None`` is.
        horizon: CALM's N, the number of generated tokens the decay stretches over. Read only with a decay.
        kv_policy: how keys and values of the layers that a token skips come to be: by ``propagate`` the text
            is another than by the other three, so it is part of what decides a text.

    Raises:
        UserError: for an unknown measure or policy, a threshold outside [0, 1], a negative decay or a horizon
            below 1.
    """

    measure: Measure = "softmax_response"
    thresholds: tuple[float | None, ...] = ()
    decay: float | None = None
    horizon: int = 512
    kv_policy: KVPolicy = "deferred"

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise UserError(f"unknown confidence measure {self.measure!r}{nearest(self.measure, MEASURES)}")
        if self.kv_policy not in KV_POLICIES:
            raise UserError(f"unknown KV policy {self.kv_policy!r}{nearest(self.kv_policy, KV_POLICIES)}")
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

    @property
    def reads_logits(self) -> bool:
        """Whether an exit that is asked must compute its logits before a token leaves there."""
        return self.measure not in READS_NO_LOGITS

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
