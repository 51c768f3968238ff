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
PLACES = 100  # of a learned path
TINY = 1e-9  # less is rounding
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
    """Search vectors of per-exit thresholds by Pareto local search, and return the path of all measured.

    Measured first are the shared thresholds and "never exit". Then, pass after pass, come the neighbours of
    all vectors on the path so far, which are one level of one exit away, until a pass has none that are new
    (Paquete, Chiarandini and Stuetzle 2004). The path is that of :func:`pareto_path` without vectors over
    delta, thinned to :data:`PLACES` even steps of saving, each with its safest vector: more would tell
    apart what few sequences cannot.

    Test the result on **another** split, as it is, with ``fixed_sequence``. The learning split must be some
    hundred sequences for that to save more than one shared threshold.

    Args:
        measure: what vectors ``(V, E)`` lose and save on the learning split. Called once a pass.
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
    unit_EE = np.eye(exits, dtype=np.int64)
    levels_VE = np.empty((0, exits), np.int64)
    passes: list[tuple[list[tuple[FloatArray, float]], FloatArray]] = []
    fresh_VE = np.repeat(np.arange(len(levels))[:, None], exits, axis=1)
    while len(fresh_VE):
        losses, savings = measure(levels[fresh_VE])
        passes.append((check_risks(losses, delta), check_savings(savings, len(fresh_VE))))
        levels_VE = np.concatenate([levels_VE, fresh_VE])
        by_risk = zip(*(risks for risks, _ in passes), strict=True)
        risks = [(np.concatenate([each for each, _ in parts], axis=1), parts[0][1]) for parts in by_risk]
        savings_V = np.concatenate([saved for _, saved in passes])
        path = front(risks, savings_V, epsilon, p_value)
        path = _thinned(path[relative_risk(risks)[path] <= 1.0], savings_V)
        near_VE = (levels_VE[path][:, None] + np.concatenate([unit_EE, -unit_EE])).reshape(-1, exits)
        inside_VE = near_VE[((near_VE >= 0) & (near_VE < len(levels))).all(axis=1)]
        unseen = set(map(tuple, inside_VE.tolist())) - set(map(tuple, levels_VE.tolist()))
        fresh_VE = np.array(sorted(unseen), np.int64).reshape(-1, exits)
    return ThresholdPath(levels[levels_VE[path]], savings_V[path], len(levels_VE))


def _thinned(path: NDArray[np.intp], savings_V: FloatArray) -> NDArray[np.intp]:
    """The first, hence safest, candidate in each of :data:`PLACES` equal ranges of saving, and in none."""
    saved = savings_V[path]
    place = np.ceil(PLACES * saved / saved[-1] - TINY) if len(saved) and saved[-1] > 0 else saved
    return path[np.diff(place, prepend=-np.inf) > 0]
