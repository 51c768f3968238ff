"""Thresholds, decay and the explicit never."""

from __future__ import annotations

import numpy as np
import pytest

from lit_eff.errors import UserError
from lit_eff.runtime.exit_rule import ExitRule


def test_never_is_not_a_threshold_of_one() -> None:
    """With a decay lambda = 1 lets tokens through later on; None never does."""
    rule = ExitRule(thresholds=(1.0, None, 0.0), decay=4.0, horizon=100)
    steps = np.arange(100)
    assert rule.should_exit(0, 1.0, 0)
    assert rule.should_exit(0, 0.95, steps)[-1]  # threshold about 0.902 by then
    assert not rule.should_exit(1, 1.0, steps).any()
    assert not rule.checks(1)
    assert not rule.checks(3)  # the last exit's threshold may be left out
    assert not rule.should_exit(3, 1.0, 0)


def test_decay_is_equation_5() -> None:
    rule = ExitRule(thresholds=(0.7, 0.99), decay=4.0, horizon=50)
    steps = np.arange(0, 200, 7)
    for e, limit in enumerate((0.7, 0.99)):
        expected = np.clip(0.9 * limit + 0.1 * np.exp(-4.0 * steps / 50), 0, 1)
        np.testing.assert_allclose(rule.threshold(e, steps), expected, rtol=1e-6)
    assert ExitRule(thresholds=(0.7,)).threshold(0, 123) == np.float32(0.7)


def test_scalar_and_array_decisions_agree_at_the_border() -> None:
    """Both sides are float32, so a confidence equal to the threshold exits in either form."""
    rule = ExitRule(thresholds=(0.1,))
    border = np.float32(0.1)
    below = np.nextafter(border, np.float32(0))
    assert rule.should_exit(0, border, 0)
    assert rule.should_exit(0, np.array([border, below]), np.array([0, 1])).tolist() == [True, False]
    assert not rule.should_exit(0, below, 0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"thresholds": (1.5,)}, "1.5"),
        ({"thresholds": (float("nan"),)}, "nan"),
        ({"thresholds": (0.5,), "measure": "cosine"}, "cosine"),
        ({"thresholds": (0.5,), "kv_policy": "copy"}, "unknown KV policy 'copy'"),
        ({"thresholds": (0.5,), "decay": -1.0}, "-1.0"),
        ({"thresholds": (0.5,), "horizon": 0}, "horizon is 0"),
    ],
)
def test_bad_rules_are_named(settings: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        ExitRule(**settings)
