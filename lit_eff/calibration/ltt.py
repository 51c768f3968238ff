"""Learn then Test: which candidates keep the risk below ``delta`` with probability ``1 - epsilon``.

A candidate's null hypothesis is "its true risk exceeds ``delta``"; a p-value is super-uniform under it; a
multiple-testing procedure rejects nulls so that any false rejection has probability at most ``epsilon``.
Source: Angelopoulos et al. 2021 (Learn then Test).

Shapes: n sequences, K candidates, R risks. Losses and risks lie in [0, 1]; one loss is one independent
sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lit_eff.calibration.inputs import Losses, check_level, check_levels, check_risks, check_savings
from lit_eff.calibration.p_values import FloatArray, candidate_p_values
from lit_eff.calibration.paths import front
from lit_eff.calibration.procedures import SPLIT, BoolArray, find_procedure
from lit_eff.errors import UserError

MOST_SEQUENCES = 1 << 22  # where the search for a sufficient number stops


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
    rejected: BoolArray
    n_needed: int | None


def sequences_needed(
    delta: float,
    epsilon: float,
    p_value: str = "hoeffding_bentkus",
    procedure: str = "fixed_sequence",
    candidates: int = 1,
) -> int:
    """The least n at which n losses of zero certify a candidate: with fewer, nothing can ever be certified.

    At delta 0.02 and epsilon 0.05: 149 (hoeffding_bentkus, binomial), 154 (wsr), 3,745 (hoeffding).

    Raises:
        UserError: for an unknown p-value or procedure, or levels outside (0, 1).
    """
    check_levels(delta, epsilon)
    level = find_procedure(procedure).first_level(candidates, epsilon)

    def certifies(n: int) -> bool:
        return bool(candidate_p_values([(np.zeros((n, 1)), delta)], p_value, level)[0] <= level)

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


def require_sequences(
    n: int,
    delta: float,
    epsilon: float,
    p_value: str = "hoeffding_bentkus",
    procedure: str = "fixed_sequence",
    candidates: int = 1,
) -> None:
    """Refuse a calibration that could certify nothing even without a single error; before it is measured.

    Raises:
        UserError: with the number of sequences that could.
    """
    needed = sequences_needed(delta, epsilon, p_value, procedure, candidates)
    if n < needed:
        raise UserError(
            f"{n} calibration sequences can certify nothing at delta {delta:g} and epsilon {epsilon:g} by "
            f"{procedure} with {p_value}, even without a single error: at least {needed} are needed; "
            "raise the number of sequences, delta or epsilon"
        )


def learn_then_test(
    losses: Losses,
    *,
    delta: float | Sequence[float],
    epsilon: float,
    p_value: str = "hoeffding_bentkus",
    procedure: str = "fixed_sequence",
    order_losses: Losses | None = None,
    savings: ArrayLike | None = None,
) -> LttResult:
    """Certify candidates: ``P(risk of the selected one <= delta) >= 1 - epsilon`` over the draw of sequences.

    Several risks at once certify a candidate for all of them: its p-value is the greatest of its risks'.

    Args:
        losses: in [0, 1], ``(n, K)``; columns from the most conservative candidate to the boldest, in an
            order that was fixed without looking at these losses. For several risks ``(R, n, K)``, or a list
            of arrays ``(n_r, K)``.
        delta, epsilon: levels in (0, 1); delta may be a sequence, one for each risk.
        p_value: a name in :data:`P_VALUES`, fixed without looking at these losses.
        procedure: a name in :data:`PROCEDURES`; ``split_fixed_sequence`` is a fixed sequence along the
            :func:`pareto_path` of ``order_losses`` and ``savings``.
        order_losses: losses ``(m, K)`` of the same candidates on **another** split, shaped as ``losses``.
        savings: what each candidate saves, ``(K,)``, in any unit; if not measured on ``order_losses``' split,
            then known before. By default a column saves more than those before it. Of the other procedures,
            the boldest column is the last one; their savings only show that the order is right.

    Raises:
        UserError: for losses outside [0, 1], an empty or wrongly shaped array, unknown names or levels,
            columns that go from bold to conservative.
    """
    risks = check_risks(losses, delta)
    check_level("epsilon", epsilon)
    size = risks[0][0].shape[1]
    tests = find_procedure(procedure)
    if procedure == SPLIT:
        if order_losses is None:
            raise UserError(f"{SPLIT} needs order_losses, of another split; or use fixed_sequence")
        learned = check_risks(order_losses, delta, "order_losses")
        if learned[0][0].shape[1] != size:
            raise UserError(
                f"order_losses have {learned[0][0].shape[1]} candidates and losses {size}; give the same ones"
            )
        saved = check_savings(np.arange(size) if savings is None else savings, size)
        order = front(learned, saved, epsilon, p_value)
    else:
        if order_losses is not None:
            raise UserError(f"order_losses are for {SPLIT}; {procedure} takes the columns as they come")
        if savings is not None:
            _check_order(check_savings(savings, size))
        order = np.arange(size)

    p_values = candidate_p_values(risks, p_value, tests.first_level(size, epsilon))
    rejected = np.zeros(size, bool)
    rejected[order] = tests.reject(p_values[order], epsilon)
    boldest = order[rejected[order]][-1:]
    return LttResult(
        selected=int(boldest[0]) if boldest.size else None,
        p_values=p_values,
        rejected=rejected,
        n_needed=None if boldest.size else _n_needed(risks, epsilon, p_value, procedure),
    )


def _check_order(savings_K: FloatArray) -> None:
    # Ends only: from one column to the next free-running text may save a little less by chance.
    if savings_K[-1] < savings_K[0]:
        raise UserError(
            f"the first candidate saves {savings_K[0]:g} and the last {savings_K[-1]:g}; expected the most "
            f"conservative first: turn the columns round, or use {SPLIT} with order_losses"
        )


def _n_needed(
    risks: Sequence[tuple[FloatArray, float]], epsilon: float, p_value: str, procedure: str
) -> int | None:
    size = risks[0][0].shape[1]
    needed = [sequences_needed(delta, epsilon, p_value, procedure, size) for _, delta in risks]
    enough = all(len(losses) >= n for (losses, _), n in zip(risks, needed, strict=True))
    return None if enough else max(needed)
