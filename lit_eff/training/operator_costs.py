"""Costs of this toolkit's own operators, by their kernels' I/O models, for profiles of training steps."""

from __future__ import annotations

from lit_eff.profiling.operators import CostModel


def operator_costs() -> dict[str, CostModel]:
    return {}
