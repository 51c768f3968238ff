"""FlashAttention's figure 2: the workload, its formulas, and what is made of measurements."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import torch

from lit_eff.errors import UserError
from lit_eff.kernels.attention.figure2 import CONTENDERS, Case, Step, cases, command, modelled, standard
from lit_eff.kernels.attention.figure2_plot import figure2_figure, figure2_table, speed_ratio
from lit_eff.kernels.attention.figure2_records import figure2_records, tile_records
from lit_eff.kernels.attention.measured_scaling import EXPONENTS, measure_scaling, scaling_table
from lit_eff.kernels.attention.tiles import Tiles
from lit_eff.profiling.traffic import KernelTraffic, Number

GB = 10**9


def test_standard_attention_moves_what_the_paper_says() -> None:
    """11 N^2 + 12 N d elements a head, forward and backward (Dao et al. 2022, algorithms 0 and 3)."""
    case = Case()
    traffic = modelled("standard", case, 90)
    assert traffic is not None
    assert traffic.total == (11 * 1024**2 + 12 * 1024 * 64) * 2 * 64 * 16
    assert modelled("SDPA flash", case, 90) is None


def test_flash_asks_for_a_third() -> None:
    records = figure2_records([Case()], 90)
    flash = next(record for record in records if record.kernel.startswith("flash in Triton"))
    assert flash.compared is not None
    assert flash.compared[2] == "modelled"
    assert 3 < (flash.baseline_ratio or 0) < 3.3  # what caches serve is not in the model


def test_matrix_products_of_the_printed_workload() -> None:
    """The paper's 66.6 and 75.2 GFLOP are not this workload's: seven products are 962."""
    assert round(Case().flops / 1e9) == 962
    assert Case().flops == 7 * 2 * 64 * 16 * 1024**2 * 64


def test_scores_need_no_more_memory_at_longer_lengths() -> None:
    made = cases([4096, 1024, 16384], batch=64)
    assert [(case.length, case.batch) for case in made] == [(1024, 64), (4096, 4), (16384, 1)]


def test_standard_is_attention() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 17, 8, dtype=torch.float64) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(standard(q, k, v), expected)


def test_a_command_tells_its_steps() -> None:
    steps = [Step("flash", Case(1, 128)), Step("flash in Triton", Case(1, 128), Tiles(64, 32, 4, 2))]
    *_, request = command(steps)
    made = [(name, Case(**case), tiles and Tiles(**tiles)) for name, case, tiles in json.loads(request)]
    assert [Step(*each) for each in made] == steps


def profiler(steps: Sequence[Step]) -> list[list[KernelTraffic]]:
    """Two kernels a step; standard attention moves ten times as much, and one contender fails."""
    if any(step.contender == "SDPA cuDNN" for step in steps):
        raise UserError("cuDNN is not here")
    found = []
    for step in steps:
        size = GB * (10 if step.contender.startswith("standard") else 1) * step.case.length // 1024
        names = ("dram_read_bytes", "dram_written_bytes", "l2_bytes")
        numbers = {name: (Number(size, "measured", "ncu"),) for name in names}
        found.append([KernelTraffic("one", {}, numbers), KernelTraffic("two", {}, numbers)])
    return found


def test_measured_bytes_are_the_sums_of_a_steps_kernels() -> None:
    records = {
        record.kernel.rpartition(":")[0]: record
        for record in figure2_records([Case()], 90, profiler=profiler)
    }
    assert list(records) == list(CONTENDERS)
    flash = records["flash"]
    assert flash.hbm_bytes("measured") == 4 * GB
    assert flash.baseline_ratio == 10
    assert [part.kernel for part in flash.parts] == ["one", "two"]
    assert records["flash, dropout"].baseline is not None
    assert records["flash, dropout"].baseline.kernel.startswith("standard, dropout")
    (missing,) = records["SDPA cuDNN"].numbers["dram_read_bytes"]
    assert (missing.source, missing.detail) == ("unavailable", "cuDNN is not here")


def test_the_table_and_the_figure_show_every_contender() -> None:
    records = figure2_records([Case(), Case(16, 2048)], 90, profiler=profiler)
    table = figure2_table(records)
    assert len(table.rows) == 2 * len(CONTENDERS)
    first = dict(zip(table.columns, table.rows[1], strict=True))
    assert (first["N"], first["attention"], first["DRAM GB"], first["fewer bytes"]) == (
        1024,
        "flash",
        4.0,
        10.0,
    )
    assert "9.2x and 5.7x" in table.caption
    figure = figure2_figure(records)
    assert [axes.get_xscale() for axes in figure.axes] == ["linear", "log"]
    labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert "standard, DRAM, slope 3.00" in labels  # twice the bytes over a quarter of the heads


def test_a_ratio_of_times_needs_both() -> None:
    timed = {"seconds": (Number(2.0, "measured"),)}
    slow = KernelTraffic("standard", {}, {"seconds": (Number(8.0, "measured"),)})
    assert speed_ratio(KernelTraffic("flash", {}, timed, slow)) == 4.0
    assert speed_ratio(KernelTraffic("flash", {}, timed)) is None
    assert speed_ratio(KernelTraffic("flash", {}, {}, slow)) is None


def test_requests_scale_as_the_theorem_says() -> None:
    """N^2 d^2 / M, by the kernel's own tiles: the small terms left over bend each fit by at most 2%."""
    found = measure_scaling()
    assert [each.variable for each in found] == list(EXPONENTS)
    for each in found:
        assert each.slope("requested (modelled)") == pytest.approx(EXPONENTS[each.variable], abs=0.03)
        assert each.slope("DRAM (measured)") is None
    assert scaling_table(found).rows[2][:4] == ("M", "4,096 to 32,768", -1.0, -0.99)


def test_tiles_of_choice_are_measured() -> None:
    (record,) = tile_records([(Case(1, 256), Tiles(64, 32, 4, 2))], profiler=profiler)
    assert record.shape["block_m"] == 64
    assert record.get("l2_bytes", "measured") == 2 * GB // 4
    rows = 16 * (256 * 64 * 2)  # of one tensor, bytes; four tiles of queries read all keys and values
    assert record.get("read_bytes", "modelled") == rows + 2 * 4 * rows


@pytest.mark.gpu
def test_a_step_runs_and_flash_moves_fewer_bytes() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    records = figure2_records([Case(4, 1024)], 90, timed=True)
    for record in records:
        assert record.get("seconds", "measured"), record.numbers["seconds"]
