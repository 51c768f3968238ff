"""The slopes of modelled traffic are the exponents of FlashAttention's Theorem 2."""

from __future__ import annotations

import pytest

from lit_eff.kernels.attention.scaling import (
    MIDDLE,
    Scaling,
    flash2_blocks,
    theorem_scalings,
    theorem_table,
)

EXPONENTS = {
    "standard": {"N": 2, "d": 0, "M": 0},
    "FlashAttention-1 order": {"N": 2, "d": 2, "M": -1},
    "FlashAttention-2 order": {"N": 2, "d": 2, "M": -1},
}


@pytest.fixture(scope="module")
def scalings() -> list[Scaling]:
    return theorem_scalings()


def test_slopes_are_the_theorems_exponents(scalings: list[Scaling]) -> None:
    found = {(each.algorithm, each.axis): each.slope for each in scalings}
    expected = {(name, axis): slope for name, axes in EXPONENTS.items() for axis, slope in axes.items()}
    assert found == pytest.approx(expected, abs=0.05)


def test_points_where_axes_cross_are_the_same(scalings: list[Scaling]) -> None:
    for name in EXPONENTS:
        own = [each for each in scalings if each.algorithm == name]
        middle = {each.hbm_bytes[each.sizes.index(MIDDLE[each.axis])] for each in own}
        assert len(middle) == 1


def test_flash_moves_less_than_standard(scalings: list[Scaling]) -> None:
    """And the second loop order less than the first, which reads and writes O once a key block."""
    by_name = {each.algorithm: each.hbm_bytes for each in scalings if each.axis == "M"}
    for standard, first, second in zip(*(by_name[name] for name in EXPONENTS), strict=True):
        assert second < first < standard


def test_a_slope_is_fitted_to_the_points_given() -> None:
    """Where the terms in N d rule, at short lengths, the slope in N is far from 2."""
    short = theorem_scalings({"N": (64, 128)})
    assert all(each.slope < 1.6 for each in short)
    assert [each.sizes for each in short] == [(64, 128)] * 3


def test_blocks_fill_the_memory() -> None:
    assert flash2_blocks(64, 65_536) == 256
    assert flash2_blocks(64, 100) == 1


def test_table_holds_exponent_and_slope(scalings: list[Scaling]) -> None:
    table = theorem_table(scalings)
    assert [row[3] for row in table.rows] == [float(n) for axes in EXPONENTS.values() for n in axes.values()]
    assert [row[4] for row in table.rows] == pytest.approx([each.slope for each in scalings], abs=0.005)
