"""Agreement with MAPIE's Learn then Test, where it is installed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lit_eff.calibration import bonferroni, fixed_sequence, holm, multi_start
from lit_eff.calibration.p_values import binomial_p_value, hoeffding_bentkus_p_value

# n -> counts k at which n (k / n) in floating point exceeds k. There MAPIE's ceiling counts one error too
# many, which costs power; ours does not.
UNLIKE = {
    20: [],
    25: [7, 14],
    50: [7, 14, 28],
    87: [11, 13, 15, 22, 26, 30, 44, 52, 60],
    100: [7, 14, 28, 55, 56],
    149: [43, 49, 75, 86, 98, 109, 121],
    200: [7, 14, 28, 55, 56, 109, 110, 111, 112],
    1000: [],
}
DELTAS = [0.02, 0.1, 0.25, 3 / 7]


def unlike(n: int) -> list[int]:
    return [k for k in range(n + 1) if math.ceil(n * (k / n)) != k]


def test_the_list_of_counts_that_round_otherwise() -> None:
    assert {n: unlike(n) for n in UNLIKE} == UNLIKE


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("n", UNLIKE)
def test_hoeffding_bentkus_p_values(n: int, delta: float) -> None:
    methods = pytest.importorskip("mapie.risk_control.methods")
    counts = np.setdiff1d(np.arange(n + 1), UNLIKE[n])
    risks = np.concatenate([counts / n, (np.arange(n) + 0.37) / n])  # fractional losses too
    theirs = methods.compute_hoeffding_bentkus_p_value(risks, n, delta)[:, 0]
    np.testing.assert_allclose(hoeffding_bentkus_p_value(risks, n, delta), theirs, rtol=1e-9, atol=1e-300)
    rest = np.array(UNLIKE[n]) / n
    larger = methods.compute_hoeffding_bentkus_p_value(rest, n, delta)[:, 0]
    assert (hoeffding_bentkus_p_value(rest, n, delta) <= larger * (1 + 1e-9)).all()


def test_rejections() -> None:
    fwer = pytest.importorskip("mapie.risk_control.fwer_control")
    rng = np.random.default_rng(1)
    for _ in range(300):
        errors = np.sort(rng.integers(0, 60, 24)) + rng.integers(0, 8, 24)
        p_values = binomial_p_value(errors / 200, 200, 0.2)
        for ours, theirs in (
            (fixed_sequence, "fixed_sequence"),
            (bonferroni, "bonferroni"),
            (holm, "bonferroni_holm"),
            (multi_start, fwer.FWERFixedSequenceTesting(n_starts=4)),
        ):
            expected = fwer.control_fwer(p_values, 0.1, theirs).tolist()
            assert np.flatnonzero(ours(p_values, 0.1)).tolist() == expected
