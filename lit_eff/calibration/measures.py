"""Choosing among confidence measures (or decays, or models), paid for.

Calibrating with each and keeping the best is multiple testing. Two ways pay for it. :func:`choose_measure`
divides epsilon among the measures (Bonferroni), and needs no further data. The other costs nothing but a
split: put the columns of all measures side by side and use ``split_fixed_sequence``, whose path, learned on
that split, takes the best of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike

from lit_eff.calibration.inputs import Losses, check_savings
from lit_eff.calibration.ltt import LttResult, learn_then_test
from lit_eff.errors import UserError


@dataclass(frozen=True)
class MeasureChoice:
    """Outcome of :func:`choose_measure`.

    Attributes:
        measure: whose selected candidate saves most; ``None`` where no measure has one: never exit.
        results: of each measure, at its share of epsilon. All that they certify holds at once.
    """

    measure: str | None
    results: dict[str, LttResult]


def choose_measure(
    losses: Mapping[str, Losses],
    savings: Mapping[str, ArrayLike],
    *,
    delta: float | Sequence[float],
    epsilon: float,
    p_value: str = "hoeffding_bentkus",
    procedure: str = "fixed_sequence",
) -> MeasureChoice:
    """Learn then Test for each measure at ``epsilon / measures``; the selected candidate that saves most.

    Args:
        losses: of each measure's candidates on the same sequences, as :func:`learn_then_test` takes them.
        savings: of each measure's candidates, ``(K,)``, in one unit; may be measured on the same sequences,
            since they choose among what is certified and have no say in the order of the tests.
        delta, epsilon, p_value, procedure: as in :func:`learn_then_test`.

    Raises:
        UserError: for measures without savings or the other way round; as :func:`learn_then_test`.
    """
    if not losses or losses.keys() != savings.keys():
        raise UserError(
            f"losses are of the measures {sorted(losses)}, savings of {sorted(savings)}; give both for each"
        )
    results = {
        name: learn_then_test(
            each,
            delta=delta,
            epsilon=epsilon / len(losses),
            p_value=p_value,
            procedure=procedure,
        )
        for name, each in losses.items()
    }
    saved = {
        name: check_savings(savings[name], len(result.p_values))[result.selected]
        for name, result in results.items()
        if result.selected is not None
    }
    return MeasureChoice(max(saved, key=saved.__getitem__, default=None), results)
