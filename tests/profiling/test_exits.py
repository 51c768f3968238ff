"""Bytes that exits save, against arithmetic written out by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_eff.errors import UserError
from lit_eff.profiling.exits import (
    Checks,
    ExitModel,
    break_even_share,
    energy_per_byte,
    exit_bytes,
    exits_table,
    expected_bytes,
    full_bytes,
)
from lit_eff.profiling.traffic import Number

MODEL = ExitModel(
    exit_layers=(2, 5, 8), layer=1000, key_value_weights=100, slot=10, heads=(700, 800, 900), state=7
)
EVERY = Checks("deferred", (True, True), reads_logits=True)
CONTEXT = 50
FULL = 8 * 1000 + 8 * 10 * 51 + 7 + 900


def totals(**changes: Any) -> list[int]:
    return [cost.total for cost in exit_bytes(MODEL, dataclasses.replace(EVERY, **changes), CONTEXT)]


def test_every_policy_by_hand() -> None:
    assert full_bytes(MODEL, CONTEXT) == FULL
    last = FULL + 700 + 800  # two output matrices read to no avail
    first_runs, second_runs = 2 * (1000 + 510) + 7, 5 * (1000 + 510) + 7
    assert totals() == [first_runs + 6 * 10 + 14 + 700, second_runs + 3 * 10 + 14 + 800 + 700, last]
    assert totals(policy="propagate") == [
        first_runs + 6 * (100 + 10) + 700,
        second_runs + 3 * (100 + 10) + 800 + 700,
        last,
    ]
    assert totals(policy="recompute") == [
        first_runs + 6 * 10 + 7 + 2 * 10 + 700,
        second_runs + 3 * 10 + 7 + 5 * 10 + 800 + 700,
        last,
    ]
    assert totals(policy="exact") == [FULL - 900 + 700, FULL - 900 + 800 + 700, last]


def test_a_classifier_of_states_costs_itself_at_every_exit_asked() -> None:
    costs = exit_bytes(MODEL, Checks("deferred", (True, True), False, score_bytes=28), CONTEXT)
    assert [cost.checks for cost in costs] == [28, 56, 56]
    assert [cost.head for cost in costs] == [700, 800, 900]
    one = exit_bytes(MODEL, Checks("deferred", (False, True), False, score_bytes=28), CONTEXT)
    assert [cost.checks for cost in one] == [0, 28, 28]


def test_without_checks_the_whole_model_saves_nothing() -> None:
    costs = exit_bytes(MODEL, Checks("deferred", (False, False), True), CONTEXT)
    assert costs[-1].saved == 0
    assert costs[0].saved == FULL - costs[0].total > costs[1].saved > 0


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    policy=st.sampled_from(["deferred", "recompute", "propagate", "exact"]),
    context=st.integers(1, 10**6),
    reads_logits=st.booleans(),
)
def test_break_even_is_where_the_expected_saving_is_nothing(
    data: st.DataObject, policy: Any, context: int, reads_logits: bool
) -> None:
    sizes = st.integers(1, 10**9)
    layer = data.draw(sizes)
    model = ExitModel(
        exit_layers=(1, 4, 6),
        layer=layer,
        key_value_weights=data.draw(st.integers(1, layer)),
        slot=data.draw(sizes),
        heads=tuple(data.draw(sizes) for _ in range(3)),
        state=data.draw(st.integers(1, 10**5)),
    )
    checks = Checks(policy, (True, True), reads_logits, score_bytes=100)
    for index in (0, 1):
        share = break_even_share(model, checks, context, index)
        alone = dataclasses.replace(checks, asked=tuple(i == index for i in range(2)))
        costs = exit_bytes(model, alone, context)
        if share == float("inf"):
            assert costs[index].saved <= 0
            continue
        assert 0 <= share <= 1
        shares = [0.0, 0.0, 1 - share]
        shares[index] = share
        assert expected_bytes(costs, shares) == pytest.approx(full_bytes(model, context), rel=1e-9)


def test_the_table_tells_bytes_joules_and_the_mean_token() -> None:
    per_byte = energy_per_byte(700.0, 3.5e12)
    assert per_byte.value == pytest.approx(2e-10)
    assert per_byte.source == "modelled"
    table = exits_table(MODEL, EVERY, CONTEXT, per_byte, shares=(0.5, 0.25, 0.25))
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["leaves at"] for row in rows] == ["layer 2", "layer 5", "layer 8", "mean token"]
    mean = 0.5 * totals()[0] + 0.25 * totals()[1] + 0.25 * totals()[2]
    assert rows[-1]["total, MB"] == pytest.approx(mean / 1e6)
    assert rows[-1]["J saved"] == pytest.approx((FULL - mean) * 2e-10)
    assert rows[0]["saved"] == pytest.approx((FULL - totals()[0]) / FULL)
    assert rows[2]["saved, MB"] == pytest.approx(-1500 / 1e6)
    gained, lost = FULL - totals()[0], 700
    assert rows[0]["break-even share"] == pytest.approx(lost / (gained + lost))
    assert "700 W over 3500 GB/s" in table.caption


def test_no_joules_without_power() -> None:
    table = exits_table(MODEL, EVERY, CONTEXT, Number(None, "unavailable", "no meter"))
    assert {row[table.columns.index("J saved")] for row in table.rows} == {None}
    assert "unavailable: no meter" in table.caption
    assert len(table.rows) == 3


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="expected 2"):
        exit_bytes(MODEL, Checks("deferred", (True,), True), CONTEXT)
    with pytest.raises(UserError, match="at least 1"):
        exit_bytes(MODEL, EVERY, 0)
    with pytest.raises(UserError, match="a sum of 1"):
        expected_bytes(exit_bytes(MODEL, EVERY, CONTEXT), (0.5, 0.2, 0.2))
    with pytest.raises(UserError, match="increasing"):
        dataclasses.replace(MODEL, exit_layers=(2, 2, 8))
