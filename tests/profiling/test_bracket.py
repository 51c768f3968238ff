"""Distinct sectors <= DRAM read <= requested, and the sentence that says where a measurement sits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lit_eff.profiling.bracket import BESIDE_BYTES, Bracket, bracket, bracket_table
from lit_eff.profiling.traffic import KernelTraffic, Number

MB = 10**6


def record(**values: tuple[int, Any]) -> KernelTraffic:
    numbers = {name: (Number(value, source),) for name, (value, source) in values.items()}
    return KernelTraffic("copy_kernel", {}, numbers)


@pytest.mark.parametrize(
    ("measured", "holds", "says"),
    [
        (97 * MB, False, "below the lower bound by 3,000,000 bytes"),
        (99 * MB, True, "at the lower bound: caches served every re-read"),
        (104 * MB, True, "at the lower bound"),
        (150 * MB, True, "between the bounds: caches served 50% of the re-reads"),
        (198 * MB, True, "at the upper bound: caches served no re-read"),
        (204 * MB, True, "at the upper bound"),
        (205 * MB, False, "above the upper bound by 5,000,000 bytes"),
    ],
)
def test_where_a_measurement_sits(measured: int, holds: bool, says: str) -> None:
    found = Bracket(least=100 * MB, measured=measured, most=200 * MB)
    assert found.holds is holds
    assert found.sentence.startswith(says)


def test_a_kernel_that_reads_each_byte_once_sits_at_both() -> None:
    found = Bracket(100 * MB, 100 * MB + 4096, 100 * MB)
    assert found.holds
    assert "nothing is read twice" in found.sentence


def test_a_small_kernel_may_read_its_instructions_too() -> None:
    assert Bracket(1024, 1024 + BESIDE_BYTES, 1024).holds
    assert not Bracket(1024, 2048 + BESIDE_BYTES, 1024).holds


def test_bounds_come_from_the_model_and_the_count() -> None:
    found = bracket(
        record(
            dram_read_bytes=(300, "measured"),
            read_sector_bytes=(200, "counted"),
            read_bytes=(1000, "counted"),
            atomic_bytes=(24, "counted"),
        )
    )
    assert found == Bracket(200, 300, 1024)


def test_a_few_bytes_of_every_sector_cost_the_whole_sector() -> None:
    strided = record(
        dram_read_bytes=(3200, "measured"), read_sector_bytes=(3200, "modelled"), read_bytes=(400, "modelled")
    )
    assert bracket(strided) == Bracket(3200, 3200, 3200)


@pytest.mark.parametrize("missing", ["dram_read_bytes", "read_sector_bytes", "read_bytes"])
def test_no_bracket_without_all_three(missing: str) -> None:
    values: dict[str, tuple[int, Any]] = {
        "dram_read_bytes": (1, "measured"),
        "read_sector_bytes": (1, "modelled"),
        "read_bytes": (1, "modelled"),
    }
    assert bracket(record(**values)) is not None
    del values[missing]
    assert bracket(record(**values)) is None


def test_the_table_says_where_each_sits_or_why_it_is_not_told() -> None:
    both = record(
        dram_read_bytes=(MB, "measured"), read_sector_bytes=(MB, "modelled"), read_bytes=(3 * MB, "modelled")
    )
    timed = replace(both, shape={"rows": 2}, numbers={**both.numbers, "seconds": (Number(1e-5, "measured"),)})
    refused = record(read_bytes=(1, "modelled"))
    refusal = {"dram_read_bytes": (Number(None, "unavailable", "no ncu; install it"),)}
    no_sectors = record(dram_read_bytes=(1, "measured"), read_bytes=(1, "modelled"))
    table = bracket_table(
        [timed, replace(refused, numbers={**refused.numbers, **refusal}), no_sectors, refused]
    )
    assert table.rows[0][1:] == (
        "rows 2",
        10.0,
        MB,
        MB,
        3 * MB,
        "yes",
        "at the lower bound: caches served every re-read",
    )
    assert [row[2:-1] for row in table.rows[1:]] == [(None,) * 5] * 3
    assert [row[-1] for row in table.rows[1:]] == [
        "unavailable: no ncu; install it",
        "unavailable: its model does not tell the sectors that it reads",
        "unavailable: not measured",
    ]
