"""Does the risk still keep to its limit? Betting against the guarantee, and a confidence sequence beside it.

Losses lie in [0, 1] and come one after the other. The null hypothesis is that the guarantee holds: given all
losses before it, each loss has a mean of at most ``delta``. A gambler who starts with 1 and stakes a share of
what he has on "the next loss is above delta" multiplies his wealth by ``1 + nu (x - delta)``; while the null
hypothesis holds his expected wealth never grows, so it ever reaches ``1 / alpha`` with a probability of at
most ``alpha`` (Ville 1939; Waudby-Smith & Ramdas 2020, "Estimating means of bounded random variables by
betting", proposition 3). One may look after every loss and stop, or go on, for whatever reason.

The bet is a mixture, and so itself predictable from past losses:

- over the size: ``nu = fraction / delta`` for fractions 1/2, 1/4, ..., since how far the risk has risen, and
  how much losses vary, is not known beforehand;
- over the moment it begins: a part ``1 / (k (k + 1))`` of the capital waits for loss ``k`` (Shin, Ramdas &
  Rinaldo 2022, "E-detectors", section 2). What was lost in a long time of low risk is therefore no debt to
  win back: a change at loss ``k`` costs ``ln k (k + 1)`` nats of evidence and not some for each loss before.

Shapes: J sizes of bets; leading dimensions, if any, are separate streams.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_eff.errors import UserError

Floats = NDArray[np.float64]
FRACTIONS_J: Floats = np.array(
    [0.5**j for j in range(1, 9)]
)  # of the largest bet, 1 / delta, which one loss of 0 would ruin
RATES = tuple(0.5**j for j in range(1, 11))  # lambda of the confidence sequence


def first_stakes() -> Floats:
    """Logarithms of what each size of bet has at stake on the first loss, ``(J,)``: half of the capital."""
    return np.full(len(FRACTIONS_J), math.log(0.5))


def play(log_stakes_J: Floats, losses: ArrayLike, count: int, delta: float) -> Floats:
    """Stakes on loss number ``count + 2`` from those on ``count + 1``, which is now known.

    Args:
        log_stakes_J: float64 ``(..., J)``, natural logarithms.
        losses: in [0, 1], ``(...,)``.
        count: losses before this one.
    """
    factors_J = FRACTIONS_J * (np.asarray(losses, np.float64)[..., None] / delta - 1.0)
    waited = -math.log((count + 2) * (count + 3))  # the part of the capital that joins now
    return np.asarray(np.logaddexp(log_stakes_J + np.log1p(factors_J), waited))


def log_wealth(log_stakes_J: Floats, count: int) -> Floats:
    """Natural logarithm of the wealth after ``count`` losses, ``(...,)``: the stakes' mean and what waits."""
    mean = np.logaddexp.reduce(log_stakes_J, axis=-1) - math.log(log_stakes_J.shape[-1])
    return np.asarray(np.logaddexp(mean, -math.log(count + 2)))


@dataclass
class RiskTest:
    """The test and the confidence sequence of one stream of losses.

    Attributes:
        delta: the limit of the risk.
        alpha: probability with which the alarm may be false, over the whole stream; and of the confidence
            sequence to miss, ever.
        count: losses so far.
        total: their sum.
        squares: sum of ``(x - m)^2``, m the mean of the losses before x (with one of 1/2 at the start).
        log_stakes_J: see :func:`play`.
        alarm_at: number of losses after which wealth first reached ``1 / alpha``; ``None``: it never has.

    Raises:
        UserError: for levels outside (0, 1).
    """

    delta: float
    alpha: float
    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    log_stakes_J: Floats = field(default_factory=first_stakes)
    alarm_at: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("delta", self.delta), ("alpha", self.alpha)):
            if not 0.0 < value < 1.0:
                raise UserError(f"{name} is {value}; expected a number strictly between 0 and 1")

    @property
    def alarm(self) -> bool:
        """Whether the null hypothesis was ever rejected; later losses do not take that back."""
        return self.alarm_at is not None

    @property
    def log_wealth(self) -> float:
        """Natural logarithm of the wealth, which is 0 at the start."""
        return float(log_wealth(self.log_stakes_J, self.count))

    @property
    def mean(self) -> float | None:
        """Mean loss; ``None`` before the first."""
        return self.total / self.count if self.count else None

    def update(self, loss: float) -> bool:
        """Take in one loss; True when it is the one that raises the alarm.

        Raises:
            UserError: for a loss outside [0, 1] or NaN.
        """
        if not 0.0 <= loss <= 1.0:
            raise UserError(f"loss is {loss}; expected a number in [0, 1]")
        expected = (0.5 + self.total) / (self.count + 1)
        self.log_stakes_J = play(self.log_stakes_J, loss, self.count, self.delta)
        self.count += 1
        self.total += loss
        self.squares += (loss - expected) ** 2
        if self.alarm or self.log_wealth < -math.log(self.alpha):
            return False
        self.alarm_at = self.count
        return True

    def interval(self) -> tuple[float, float]:
        """Bounds of the mean, over the losses so far, of each one's expectation given those before it.

        With probability at least ``1 - alpha`` that mean lies in all the intervals ever given; it is the risk
        where the risk does not change. Empirical Bernstein (Howard et al. 2021, "Time-uniform,
        nonparametric, nonasymptotic confidence sequences", theorem 4): for every rate,
        ``exp(rate * sum(x - E x) - (-ln(1 - rate) - rate) * squares)`` is a supermartingale, and so is
        that of ``-x``. All rates and both sides share ``alpha`` equally.
        """
        if not self.count:
            return 0.0, 1.0
        needed = math.log(2 * len(RATES) / self.alpha)
        sums = ((needed + (-math.log1p(-rate) - rate) * self.squares) / rate for rate in RATES)
        mean, radius = self.total / self.count, min(sums) / self.count
        return max(0.0, mean - radius), min(1.0, mean + radius)

    def to_dict(self) -> dict[str, Any]:
        """What was seen, in JSON types; the levels are not part of it."""
        return {
            "count": self.count,
            "total": self.total,
            "squares": self.squares,
            "log_stakes": self.log_stakes_J.tolist(),
            "alarm_at": self.alarm_at,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], *, delta: float, alpha: float) -> RiskTest:
        """Go on from :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError: for something else.
        """
        stakes_J = np.array(state["log_stakes"], np.float64)
        if stakes_J.shape != FRACTIONS_J.shape:
            raise ValueError(f"{stakes_J.size} stakes; expected {FRACTIONS_J.size}")
        alarm_at = state["alarm_at"]
        return cls(
            delta=delta,
            alpha=alpha,
            count=int(state["count"]),
            total=float(state["total"]),
            squares=float(state["squares"]),
            log_stakes_J=stakes_J,
            alarm_at=None if alarm_at is None else int(alarm_at),
        )
