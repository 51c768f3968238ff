"""Learn then Test: which exit thresholds keep the risk below ``delta`` with probability ``1 - epsilon``.

A candidate's null hypothesis is "its true risk exceeds ``delta``"; a p-value is super-uniform under it; a
multiple-testing procedure rejects nulls so that any false rejection has probability at most ``epsilon``.
Sources: Angelopoulos et al. 2021 (Learn then Test), Bates et al. 2021 (Hoeffding-Bentkus).

Shapes: n sequences, K candidates, ordered from the most conservative to the boldest **before** the losses
were seen. Losses and risks lie in [0, 1]; one loss is one independent sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, rel_entr

from lit_eff.errors import UserError, nearest

FloatArray = NDArray[np.float64]
ColumnPValue = Callable[[FloatArray, float], FloatArray]
MOST_SEQUENCES = 1 << 26  # where the search for a sufficient number stops


def hoeffding_p_value(risk: ArrayLike, n: int, delta: float) -> FloatArray:
    """``exp(-2 n max(0, delta - R)^2)`` (Hoeffding 1963), in the shape of ``risk``; for comparison.

    Args:
        risk: mean losses R in [0, 1].
        n: sequences behind each mean.
        delta: the risk that must not be exceeded.
    """
    gap = np.maximum(0.0, delta - np.asarray(risk, np.float64))
    return np.asarray(np.exp(-2.0 * n * gap**2))


def binomial_p_value(risk: ArrayLike, n: int, delta: float) -> FloatArray:
    """``P(Binomial(n, delta) <= n R)``, exact for losses that are 0 or 1 and **invalid for any other**.

    Arguments as :func:`hoeffding_p_value`.
    """
    # n R is an integer up to rounding: without the 1e-9 a mean such as 0.07 * 100 = 7.000000000000001 would
    # count one error too many.
    errors = np.ceil(n * np.asarray(risk, np.float64) - 1e-9)
    return np.asarray(bdtr(errors, n, delta))


def hoeffding_bentkus_p_value(risk: ArrayLike, n: int, delta: float) -> FloatArray:
    """The Hoeffding-Bentkus p-value, valid for any losses in [0, 1] (Bates et al. 2021, proposition 2).

    ``min(exp(-n h1(min(R, delta), delta)), e P(Binomial(n, delta) <= ceil(n R)))``, at most 1, where ``h1``
    is the relative entropy of two Bernoulli variables. Arguments as :func:`hoeffding_p_value`.
    """
    bounded = np.minimum(np.asarray(risk, np.float64), delta)
    relative_entropy = rel_entr(bounded, delta) + rel_entr(1.0 - bounded, 1.0 - delta)
    bentkus = math.e * binomial_p_value(risk, n, delta)
    return np.asarray(np.minimum(1.0, np.minimum(np.exp(-n * relative_entropy), bentkus)))


def _of_mean(
    p_value: Callable[[ArrayLike, int, float], FloatArray],
) -> Callable[[FloatArray, float], FloatArray]:
    return lambda losses_nK, delta: p_value(losses_nK.mean(axis=0), len(losses_nK), delta)


def _exact_binomial(losses_nK: FloatArray, delta: float) -> FloatArray:
    if not np.isin(losses_nK, (0.0, 1.0)).all():
        raise UserError(
            "the binomial p-value needs losses of 0 or 1; use hoeffding_bentkus for losses in between"
        )
    return binomial_p_value(losses_nK.mean(axis=0), len(losses_nK), delta)


def fixed_sequence(p_values_K: FloatArray, epsilon: float) -> NDArray[np.bool_]:
    """Reject in order while ``p <= epsilon``, stop at the first failure: bool ``(K,)``, leading ones only.

    Every test has the full level: no error is made before the first true null of the order, and rejecting
    that one has probability at most epsilon (Angelopoulos et al. 2021, section 2.3).
    """
    return np.logical_and.accumulate(p_values_K <= epsilon)


# A p-value sees whole columns of losses, since some (betting) read more than their mean.
P_VALUES: dict[str, ColumnPValue] = {
    "hoeffding_bentkus": _of_mean(hoeffding_bentkus_p_value),
    "hoeffding": _of_mean(hoeffding_p_value),
    "binomial": _exact_binomial,
}
PROCEDURES: dict[str, Callable[[FloatArray, float], NDArray[np.bool_]]] = {"fixed_sequence": fixed_sequence}


@dataclass(frozen=True)
class LttResult:
    """Outcome of :func:`learn_then_test`.

    Attributes:
        selected: column of the boldest rejected (certified) candidate; ``None`` certifies none: never exit.
        p_values: float64 ``(K,)``.
        rejected: bool ``(K,)``; every rejected candidate has risk at most delta, all at once.
        n_needed: ``None`` where ``n`` could certify something; otherwise the least number of sequences that
            could, were there no errors at all.
    """

    selected: int | None
    p_values: FloatArray
    rejected: NDArray[np.bool_]
    n_needed: int | None


def check_levels(delta: float, epsilon: float) -> None:
    """Raises UserError unless both are strictly between 0 and 1."""
    for name, value in (("delta", delta), ("epsilon", epsilon)):
        if not 0.0 < value < 1.0:
            raise UserError(f"{name} is {value}; expected a number strictly between 0 and 1")


def sequences_needed(delta: float, epsilon: float, p_value: str = "hoeffding_bentkus") -> int:
    """The least n at which n losses of zero give ``p <= epsilon``: with fewer, nothing can ever be certified.

    At delta 0.02 and epsilon 0.05: 149 (hoeffding_bentkus, binomial), 3,745 (hoeffding).

    Raises:
        UserError: for an unknown p-value, or levels outside (0, 1).
    """
    check_levels(delta, epsilon)
    p_of_column = _lookup("p_value", p_value, P_VALUES)

    def certifies(n: int) -> bool:
        return bool(p_of_column(np.zeros((n, 1)), delta)[0] <= epsilon)

    high = 1
    while not certifies(high):
        high *= 2
        if high > MOST_SEQUENCES:
            raise UserError(
                f"delta {delta} with epsilon {epsilon} needs over {MOST_SEQUENCES:,} sequences; raise delta"
            )
    low = high // 2
    while high - low > 1:  # p falls as n grows: low fails (or is 0), high certifies
        middle = (low + high) // 2
        low, high = (low, middle) if certifies(middle) else (middle, high)
    return high


def learn_then_test(
    losses_nK: ArrayLike,
    *,
    delta: float,
    epsilon: float,
    p_value: str = "hoeffding_bentkus",
    procedure: str = "fixed_sequence",
) -> LttResult:
    """Certify candidates: ``P(risk of the selected one <= delta) >= 1 - epsilon`` over the draw of sequences.

    Args:
        losses_nK: losses in [0, 1], ``(n, K)``; columns from the most conservative candidate to the boldest,
            in an order that was fixed without looking at these losses.
        delta, epsilon: levels in (0, 1).
        p_value: a name in :data:`P_VALUES`.
        procedure: a name in :data:`PROCEDURES`.

    Raises:
        UserError: for losses outside [0, 1], an empty or wrongly shaped array, unknown names or levels.
    """
    check_levels(delta, epsilon)
    p_of_columns = _lookup("p_value", p_value, P_VALUES)
    reject = _lookup("procedure", procedure, PROCEDURES)
    losses = np.asarray(losses_nK, np.float64)
    if losses.ndim != 2 or 0 in losses.shape:
        raise UserError(
            f"losses have shape {losses.shape}; expected (sequences, candidates), both at least 1"
        )
    if not ((losses >= 0.0) & (losses <= 1.0)).all():  # also false for NaN
        raise UserError("losses hold values outside [0, 1] or NaN; the guarantee needs bounded losses")
    p_values = p_of_columns(losses, delta)
    rejected = reject(p_values, epsilon)
    boldest = np.flatnonzero(rejected)
    n_needed = sequences_needed(delta, epsilon, p_value)
    return LttResult(
        selected=int(boldest[-1]) if boldest.size else None,
        p_values=p_values,
        rejected=rejected,
        n_needed=n_needed if len(losses) < n_needed else None,
    )


def _lookup(kind: str, name: str, options: dict[str, Any]) -> Any:
    if name not in options:
        raise UserError(f"unknown {kind} {name!r}{nearest(name, options)}")
    return options[name]
