"""Paths of candidates from safest to boldest, learned on a split of their own.

A fixed sequence needs an order that its losses had no say in. One shared threshold brings its own; vectors of
thresholds, one an exit, do not, so another split orders them (split fixed sequence testing, Angelopoulos et
al. 2021, section 2.3; Pareto testing, Laufer-Goldenberg et al. 2023). Only candidates on the Pareto front of
estimated safety and saving are worth a test: every other one has a safer one that saves as much.

Shapes: m sequences of the learning split, V candidate vectors, E early exits, G levels of the threshold grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_eff.calibration.inputs import Losses, check_level, check_risks, check_savings
from lit_eff.calibration.p_values import FloatArray, candidate_p_values
from lit_eff.errors import UserError

NEVER = np.inf  # a threshold that no confidence reaches
TINY = 1e-12  # less added risk is rounding of means
# Thresholds (V, E) -> losses of each, (m, V) or as check_risks takes several risks, and savings (V,).
Measure = Callable[[FloatArray], tuple[Losses, ArrayLike]]


def relative_risk(risks: Sequence[tuple[FloatArray, float]]) -> FloatArray:
    """Empirical risk over delta, the greatest of all risks: above 1 is over the limit. ``(K,)``."""
    return np.asarray(np.max([losses.mean(axis=0) / delta for losses, delta in risks], axis=0))


def pareto_path(
    losses: Losses,
    savings: ArrayLike,
    *,
    delta: float | Sequence[float],
    epsilon: float,
    p_value: str = "hoeffding_bentkus",
) -> NDArray[np.intp]:
    """Candidates from safest to boldest, each saving more than all before: indices into the columns.

    Safety is the estimated p-value, which weighs several risks by how hard each is to certify; equal ones are
    told apart by their risk. Of candidates that look equally safe (no errors at all, say) the one that saves
    least comes first and the others follow: a bold one that looks safe by chance would end the sequence.

    Args:
        losses: of the learning split, ``(m, V)``, or several risks as in :func:`learn_then_test`.
        savings: of each candidate, ``(V,)``, in any unit, measured on the learning split or before.
        delta, epsilon, p_value: as they will be used in the test.

    Raises:
        UserError: for losses or savings out of shape or range.
    """
    check_level("epsilon", epsilon)
    risks = check_risks(losses, delta)
    return front(risks, check_savings(savings, risks[0][0].shape[1]), epsilon, p_value)


def front(
    risks: Sequence[tuple[FloatArray, float]], savings_V: FloatArray, epsilon: float, p_value: str
) -> NDArray[np.intp]:
    """:func:`pareto_path` of losses and savings that are checked already."""
    p_values = candidate_p_values(risks, p_value, epsilon)
    order = np.lexsort((savings_V, relative_risk(risks), p_values))
    before = np.maximum.accumulate(np.concatenate([[-np.inf], savings_V[order][:-1]]))
    return order[savings_V[order] > before]


@dataclass(frozen=True)
class ThresholdPath:
    """Vectors of thresholds from safest to boldest, ready to be tested in this order on another split.

    Attributes:
        thresholds: float64 ``(K, E)``, one per early exit; :data:`NEVER` never exits there.
        savings: float64 ``(K,)``, of the learning split, increasing.
        measured: how many vectors were measured to find it.
    """

    thresholds: FloatArray
    savings: FloatArray
    measured: int


def learn_thresholds(
    measure: Measure,
    grid: ArrayLike,
    exits: int,
    *,
    delta: float | Sequence[float],
    epsilon: float,
    p_value: str = "hoeffding_bentkus",
) -> ThresholdPath:
    """Search vectors of per-exit thresholds by greedy relaxation, and return the Pareto path of all measured.

    Measured first are the shared thresholds, so that the path is no worse than theirs. Then, from "never
    exit", one exit at a time is relaxed by one level of the grid: the one that saves most per added risk, one
    that adds no risk before all others; until every further step exceeds delta. That takes at most ``E G``
    steps of at most E vectors. Vectors over delta are left out of the path.

    Test the result on **another** split, as it is, with ``fixed_sequence``. The two splits together must be
    some hundred sequences for that to save more than one shared threshold tested on both.

    Args:
        measure: what vectors ``(V, E)`` lose and save on the learning split. Called with all shared
            thresholds and then once a step.
        grid: thresholds for each exit, decreasing: from the most conservative to the boldest.
        exits: early exits E.
        delta, epsilon, p_value: as they will be used in the test.

    Raises:
        UserError: for a grid in another order; as :func:`pareto_path`.
    """
    check_level("epsilon", epsilon)
    levels = np.asarray(grid, np.float64)
    if levels.ndim != 1 or not len(levels) or not (np.diff(levels) < 0).all():
        raise UserError(
            f"the threshold grid is {levels.tolist()}; expected decreasing numbers, most conservative first"
        )
    levels = np.append(NEVER, levels)  # level 0
    found: list[tuple[FloatArray, list[FloatArray], FloatArray]] = []

    def look(levels_VE: NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
        thresholds_VE = levels[levels_VE]
        losses, savings = measure(thresholds_VE)
        risks = check_risks(losses, delta)
        found.append((thresholds_VE, [each for each, _ in risks], check_savings(savings, len(levels_VE))))
        return relative_risk(risks), found[-1][2]

    shared = np.repeat(np.arange(len(levels))[:, None], exits, axis=1)
    risk_V, saved_V = look(shared)
    here, risk, saved = shared[0], risk_V[0], saved_V[0]
    while (here < len(levels) - 1).any():
        steps_VE = (here + np.eye(exits, dtype=np.int64))[here < len(levels) - 1]
        risk_V, saved_V = look(steps_VE)
        gain_V, added_V = saved_V - saved, risk_V - risk
        allowed_V = risk_V <= 1.0
        if not allowed_V.any():
            break
        rate_V = np.where(added_V > TINY, gain_V / np.maximum(added_V, TINY), np.inf)
        best = np.lexsort((gain_V, np.where(allowed_V, rate_V, -np.inf)))[-1]  # of equal rates the most gain
        here, risk, saved = steps_VE[best], risk_V[best], saved_V[best]

    thresholds, losses, savings = zip(*found, strict=True)
    risks = check_risks([np.concatenate(each, axis=1) for each in zip(*losses, strict=True)], delta)
    thresholds_VE, savings_V = np.concatenate(thresholds), np.concatenate(savings)
    path = front(risks, savings_V, epsilon, p_value)
    path = path[relative_risk(risks)[path] <= 1.0]  # the others would be measured again for nothing
    return ThresholdPath(thresholds_VE[path], savings_V[path], len(thresholds_VE))
