"""P-values for "the true risk exceeds delta", from losses in [0, 1] of independent sequences.

Each is super-uniform under its null hypothesis, ``P(p <= u) <= u`` for every u. Which one to use must be
fixed before the losses are seen. ``binomial`` is exact for losses that are 0 or 1 **by construction** (one
prediction a sequence, exact match), and nothing here switches to it by itself: that the losses of one sample
happen to be 0 or 1 says nothing about those of the next. ``wsr`` certifies most for
losses in between, by far where they vary little; ``hoeffding_bentkus`` needs no more than means, and
``hoeffding`` is for comparison. ``lit-eff bench calibration`` compares them.

Shapes: n sequences, K candidates; ``...`` any leading dimensions, such as repeated trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, rel_entr

from lit_eff.errors import UserError, nearest

FloatArray = NDArray[np.float64]
# (losses_...nK, delta, level) -> p_...K. A p-value sees whole columns of losses, since wsr reads more than
# their mean; level is what it will be compared with, for which wsr sizes its bets and which the others
# ignore. All fall as delta grows, which may be an array of one for each candidate.
PValue = Callable[[FloatArray, "float | FloatArray", float], FloatArray]


def hoeffding_p_value(risk: ArrayLike, n: int, delta: float | FloatArray) -> FloatArray:
    """``exp(-2 n max(0, delta - R)^2)`` (Hoeffding 1963), in the shape of ``risk``; for comparison.

    Args:
        risk: mean losses R in [0, 1].
        n: sequences behind each mean.
        delta: the risk that must not be exceeded.
    """
    gap = np.maximum(0.0, delta - np.asarray(risk, np.float64))
    return np.asarray(np.exp(-2.0 * n * gap**2))


def binomial_p_value(risk: ArrayLike, n: int, delta: float | FloatArray) -> FloatArray:
    """``P(Binomial(n, delta) <= n R)``, exact for losses that are 0 or 1 and **invalid for any other**.

    Arguments as :func:`hoeffding_p_value`.
    """
    # n R is an integer up to rounding: without the 1e-9 a mean such as 0.07 * 100 = 7.000000000000001 would
    # count one error too many.
    errors = np.ceil(n * np.asarray(risk, np.float64) - 1e-9)
    return np.asarray(bdtr(errors, n, delta))


def hoeffding_bentkus_p_value(risk: ArrayLike, n: int, delta: float | FloatArray) -> FloatArray:
    """The Hoeffding-Bentkus p-value, valid for any losses in [0, 1] (Bates et al. 2021, proposition 2).

    ``min(exp(-n h1(min(R, delta), delta)), e P(Binomial(n, delta) <= ceil(n R)))``, at most 1, where ``h1``
    is the relative entropy of two Bernoulli variables. Arguments as :func:`hoeffding_p_value`.
    """
    bounded = np.minimum(np.asarray(risk, np.float64), delta)
    relative_entropy = rel_entr(bounded, delta) + rel_entr(1.0 - bounded, 1.0 - delta)
    bentkus = math.e * binomial_p_value(risk, n, delta)
    return np.asarray(np.minimum(1.0, np.minimum(np.exp(-n * relative_entropy), bentkus)))


def wsr_bets(losses: FloatArray, level: float) -> FloatArray:
    """What is staked on each loss being small, in (0, 1], ``(..., n, K)``: predictable, so never its own.

    The ``nu_t`` of :func:`wsr_p_value`, large where the losses before t varied little.
    """
    n = losses.shape[-2]
    seen = np.arange(2.0, n + 2.0)[:, None]  # t + 1, the prior counting as one loss of 1/2
    mean = (0.5 + losses.cumsum(axis=-2)) / seen
    variance = (0.25 + np.square(losses - mean).cumsum(axis=-2)) / seen
    before = np.empty_like(variance)
    before[..., :1, :] = 0.25
    before[..., 1:, :] = variance[..., :-1, :]
    return np.asarray(np.minimum(1.0, np.sqrt(2.0 * math.log(1.0 / level) / (n * before))))


def greatest_wealth(losses: FloatArray, bets: FloatArray, delta: float | FloatArray) -> FloatArray:
    """``max_t prod_{i <= t} (1 - nu_i (x_i - delta))``, ``(..., K)``: a bettor's best moment, starting at 1.

    Non-decreasing in delta. Where the true risk is at least delta the wealth is a supermartingale, so it ever
    reaches 1/u with probability at most u (Ville's inequality).
    """
    with np.errstate(over="ignore"):  # past 1e308 it is inf, and p is 0
        return np.asarray(np.cumprod(1.0 - bets * (losses - delta), axis=-2).max(axis=-2))


def wsr_p_value(losses: FloatArray, delta: float | FloatArray, level: float) -> FloatArray:
    """The betting p-value (Waudby-Smith & Ramdas 2020; Bates et al. 2021, section 3.1.3), ``(..., K)``.

    ``p = min(1, 1 / max_t prod_{i <= t} (1 - nu_i (x_i - delta)))`` with
    ``nu_t = min(1, sqrt(2 ln(1/level) / (n s2_{t-1})))``, ``s2_t = (1/4 + sum (x_i - mu_i)^2) / (t + 1)`` and
    ``mu_t = (1/2 + sum x_i) / (t + 1)``. It depends on the order of the sequences, which must not have been
    chosen by their losses.

    Args:
        losses: in [0, 1], float64 ``(..., n, K)``.
        delta: the risk that must not be exceeded.
        level: valid whatever it is; most powerful where p is compared with it.
    """
    return np.asarray(np.minimum(1.0, 1.0 / greatest_wealth(losses, wsr_bets(losses, level), delta)))


def _of_mean(p_value: Callable[[ArrayLike, int, float | FloatArray], FloatArray]) -> PValue:
    return lambda losses, delta, level: p_value(losses.mean(axis=-2), losses.shape[-2], delta)


def _exact_binomial(losses: FloatArray, delta: float | FloatArray, level: float) -> FloatArray:
    if not ((losses == 0.0) | (losses == 1.0)).all():
        raise UserError(
            "the binomial p-value needs losses of 0 or 1; use hoeffding_bentkus or wsr for losses in between"
        )
    return binomial_p_value(losses.mean(axis=-2), losses.shape[-2], delta)


P_VALUES: dict[str, PValue] = {
    "hoeffding_bentkus": _of_mean(hoeffding_bentkus_p_value),
    "wsr": wsr_p_value,
    "binomial": _exact_binomial,
    "hoeffding": _of_mean(hoeffding_p_value),
}


def find_p_value(name: str) -> PValue:
    """The entry of :data:`P_VALUES`; raises UserError for an unknown name."""
    if name not in P_VALUES:
        raise UserError(f"unknown p_value {name!r}{nearest(name, P_VALUES)}")
    return P_VALUES[name]


def candidate_p_values(risks: Sequence[tuple[FloatArray, float]], p_value: str, level: float) -> FloatArray:
    """The p-value of each candidate's null, "some risk exceeds its delta": the greatest over risks, ``(K,)``.

    Valid whatever the dependence between risks: under the null one of the p-values is super-uniform, and the
    greatest is no less (intersection-union test).

    Args:
        risks: pairs of losses ``(n, K)`` and delta.
        p_value: a name in :data:`P_VALUES`.
        level: what the p-values will be compared with.

    Raises:
        UserError: for an unknown name, or losses the p-value is not valid for.
    """
    of_columns = find_p_value(p_value)
    return np.asarray(np.max([of_columns(losses, delta, level) for losses, delta in risks], axis=0))
