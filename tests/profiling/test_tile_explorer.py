"""The tile explorer on a kernel whose costs are simple arithmetic."""

from __future__ import annotations

from lit_eff.profiling.devices import get_device
from lit_eff.profiling.tile_explorer import Explored, TileCost, explore, tile_figure, tile_table

KIB = 1024
SIZES = (16, 32, 64)


def cost(block_m: int, block_n: int) -> TileCost:
    """Bytes fall with block_m; a program takes a KiB for each element of both block sizes together."""
    return TileCost(10**9 * 64 // block_m, (block_m + block_n) * KIB)


def explored() -> Explored:
    return Explored(
        "toy",
        get_device("L4"),
        explore(cost, SIZES, SIZES),
        shipped=(32, 32),
        curves={"other order": {16: TileCost(5 * 10**9, 98 * KIB), 32: TileCost(3 * 10**9, 100 * KIB)}},
        levels={"standard": 8 * 10**9},
    )


def test_table_tells_what_fits() -> None:
    """99 KiB for a program and 100 an SM, of which the driver keeps one for each program."""
    rows = {row[:2]: row[2:] for row in tile_table(explored()).rows}
    assert len(rows) == 9
    assert rows[16, 16] == (4 * 10**9, 32 * KIB, 3, None)
    assert rows[32, 32] == (2 * 10**9, 64 * KIB, 1, "shipped")
    assert rows[64, 32] == (10**9, 96 * KIB, 1, None)
    assert rows[64, 64] == (10**9, 128 * KIB, "does not fit", None)


def test_the_best_of_a_size_fits_if_any_does() -> None:
    best = explored().best_by_outer()
    assert list(best) == [16, 32, 64]
    assert best[64] == cost(64, 16)
    cheap_but_large = {(16, 16): TileCost(9, KIB), (16, 32): TileCost(1, 200 * KIB)}
    assert Explored("x", get_device("L4"), cheap_but_large).best_by_outer()[16].hbm_bytes == 9
    by_columns = Explored("x", get_device("L4"), cheap_but_large, outer=1).best_by_outer()
    assert by_columns[32].hbm_bytes == 1


def test_figure_marks_what_does_not_fit_and_what_is_shipped() -> None:
    figure = tile_figure(explored())
    grid, line = figure.axes[:2]
    hatched = [patch for patch in grid.patches if patch.get_hatch()]
    assert [patch.get_xy() for patch in hatched] == [(1.5, 1.5)]
    (shipped,) = (patch for patch in grid.patches if not patch.get_hatch())
    assert shipped.get_xy() == (0.5, 0.5)
    assert len(grid.texts) == 9
    own, other = line.collections
    hollow = [[tuple(color) == (1, 1, 1, 1) for color in each.get_facecolors()] for each in (own, other)]
    assert hollow == [[False, False, False], [False, True]]  # 100 KiB leave none for the driver
    assert [text.get_text() for text in line.get_legend().get_texts()] == [
        "toy, outer block_m",
        "other order",
        "standard",
        "does not fit in SRAM",
    ]
