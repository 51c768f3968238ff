"""What the guarantee costs: layers saved beside the exact test's and an oracle's; and how long it takes."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.stats import binom

from lit_eff.bench.calibration import compare_p_values
from lit_eff.bench.calibration_families import binary, risks, savings
from lit_eff.calibration import P_VALUES, PROCEDURES, learn_then_test

DELTA, EPSILON = 0.1, 0.05  # as in lit_eff.bench.calibration
TRIALS = {100: 200, 1_000: 60, 10_000: 4}


@pytest.mark.parametrize(
    ("p_value", "n", "share"),
    [
        *(
            ("binomial", n, 1.0) for n in TRIALS
        ),  # for losses of 0 or 1 by construction: the exact test itself
        *((name, n, 0.97) for name in ("hoeffding_bentkus", "wsr") for n in (1_000, 10_000)),
        ("hoeffding_bentkus", 100, 0.85),  # what its factor e costs with few sequences
        ("wsr", 100, 0.9),
    ],
)
def test_layers_saved_on_binary_losses_beside_the_exact_test(p_value: str, n: int, share: float) -> None:
    rng, saved = np.random.default_rng(n), np.append(savings(100), 0.0)
    ours = exact = 0.0
    for losses in binary(risks(100), TRIALS[n], n, rng):
        selected = learn_then_test(losses, delta=DELTA, epsilon=EPSILON, p_value=p_value).selected
        ours += saved[-1 if selected is None else selected]
        count = 0
        while count < 100 and binom.cdf(losses[:, count].sum(), n, DELTA) <= EPSILON:
            count += 1
        exact += saved[count - 1]
    assert exact > 0
    assert share * exact <= ours <= exact * (1 + 1e-9)


@pytest.mark.parametrize("family", ["shares", "smooth"])
@pytest.mark.parametrize("n", TRIALS)
def test_on_continuous_losses_betting_saves_most_and_no_more_than_the_oracle(family: str, n: int) -> None:
    found = compare_p_values(family, n, TRIALS[n])
    saved = {name: float(values.mean()) for name, (values, _) in found.items()}
    assert saved["wsr"] >= saved["hoeffding_bentkus"] >= saved["hoeffding"]
    assert saved["wsr"] <= saved["oracle"]
    if n == 10_000:
        assert saved["wsr"] >= 0.95 * saved["oracle"]
    for values, risk in found.values():
        assert (risk > DELTA).mean() <= 2 * EPSILON
        assert values.min() >= 0.0


@pytest.mark.parametrize("p_value", P_VALUES)
@pytest.mark.parametrize("procedure", PROCEDURES)
def test_a_thousand_sequences_of_a_hundred_thresholds_take_under_a_second(
    p_value: str, procedure: str
) -> None:
    losses = binary(risks(100), 1, 1_000, np.random.default_rng(0))[0]
    options = {"order_losses": losses} if procedure == "split_fixed_sequence" else {}
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        learn_then_test(losses, delta=DELTA, epsilon=EPSILON, p_value=p_value, procedure=procedure, **options)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 1.0
