"""The lecture's carbon table row by row, energy in kWh and tonnes, and plans of training runs."""

from __future__ import annotations

import pytest

from lit_eff.errors import UserError
from lit_eff.profiling.carbon import RUNS, Grid, footprint_table, lecture_table
from lit_eff.profiling.devices import get_device
from lit_eff.profiling.plan import TrainingPlan, attention_flops, utilisation
from lit_eff.profiling.traffic import Number

A100 = get_device("A100 SXM 80 GB")
# LLaMA (Touvron et al. 2023), table 2 and section 2: parameters, tokens.
LLAMA = {
    "LLaMA-7B": (6.7e9, 1.0e12),
    "LLaMA-13B": (13.0e9, 1.0e12),
    "LLaMA-33B": (32.5e9, 1.4e12),
    "LLaMA-65B": (65.2e9, 1.4e12),
}
BY_MODEL = {run.model: run for run in RUNS}


@pytest.mark.parametrize(
    ("model", "gpu_hours", "mwh", "tonnes"),
    [
        ("LLaMA-7B", 82_432, 36, 14),
        ("LLaMA-13B", 135_168, 59, 23),
        ("LLaMA-33B", 530_432, 233, 90),
        ("LLaMA-65B", 1_022_362, 449, 173),
        ("OPT-175B", 809_472, 356, 137),
        ("BLOOM-175B", 1_082_880, 475, 183),
    ],
)
def test_the_lectures_table(model: str, gpu_hours: int, mwh: int, tonnes: int) -> None:
    """Tonnes as printed in all six rows; MWh as printed but for two, which differ by less than 0.4%."""
    run = BY_MODEL[model]
    assert (run.gpu_hours, run.watts, run.printed_mwh, run.printed_tonnes) == (gpu_hours, 400, mwh, tonnes)
    assert run.mwh == pytest.approx(gpu_hours * 400 * 1.1 / 1e6)
    assert round(run.tonnes) == tonnes
    if model in ("LLaMA-65B", "BLOOM-175B"):
        assert round(run.mwh) != mwh
        assert run.mwh == pytest.approx(mwh, rel=0.004)
    else:
        assert round(run.mwh) == mwh


def test_the_table_shows_both_figures_where_they_differ() -> None:
    table = lecture_table()
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert len(rows) == 6
    assert (rows["LLaMA-65B"]["MWh, computed"], rows["LLaMA-65B"]["MWh, printed"]) == (449.8, 449)
    assert (rows["BLOOM-175B"]["MWh, computed"], rows["BLOOM-175B"]["MWh, printed"]) == (476.5, 475)
    assert "BLOOM-175B and LLaMA-65B are not what the formula gives" in table.caption


def test_a_runs_energy_becomes_kwh_and_tonnes_also_a_million_tokens() -> None:
    measured = Number(7.2e9, "measured", "NVML energy counter, 8 GPUs")  # 2,000 kWh
    table = footprint_table(measured, tokens=500 * 10**6, grid=Grid(pue=1.5, kg_per_kwh=0.2))
    rows = {row[0]: row for row in table.rows}
    assert rows["energy, kWh"][1:3] == (pytest.approx(3000), pytest.approx(6))
    assert rows["carbon, tCO2e"][1:3] == (pytest.approx(0.6), pytest.approx(0.0012))
    assert rows["energy, J"][3] == "measured: NVML energy counter, 8 GPUs"
    assert rows["carbon, tCO2e"][3].endswith("x PUE 1.5 x 0.2 kg/kWh")


def test_an_unavailable_energy_stays_unavailable() -> None:
    table = footprint_table(Number(None, "unavailable", "no meter"), tokens=100)
    assert {row[1:] for row in table.rows} == {(None, None, "unavailable: no meter")}


def test_grids_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match=r"PUE 0\.9; expected at least 1"):
        Grid(pue=0.9)
    with pytest.raises(UserError, match="grid factor -1"):
        Grid(kg_per_kwh=-1)


def plan(**changes: object) -> TrainingPlan:
    values: dict[str, object] = {
        "parameters": 65.2e9,
        "tokens": 1.4e12,
        "gpus": 2048,
        "device": A100,
        "utilisation": 0.47,
        "watts": 400,
    }
    return TrainingPlan(**{**values, **changes})  # type: ignore[arg-type]


def test_llamas_rows_follow_from_one_utilisation() -> None:
    """At 47% of the A100's peak, every LLaMA's GPU-hours, MWh and tonnes come out within a tenth."""
    for model, (parameters, tokens) in LLAMA.items():
        planned, printed = plan(parameters=parameters, tokens=tokens), BY_MODEL[model]
        assert planned.gpu_hours == pytest.approx(printed.gpu_hours, rel=0.1), model
        assert planned.mwh == pytest.approx(printed.mwh, rel=0.1), model
        assert planned.tonnes == pytest.approx(printed.tonnes, rel=0.1), model
        implied = utilisation(parameters, tokens, printed.gpu_hours, A100)
        assert 0.43 < implied < 0.52
        exact = plan(parameters=parameters, tokens=tokens, utilisation=implied)
        assert exact.mwh == pytest.approx(printed.mwh)


def test_llama_65b_took_about_21_days() -> None:
    assert plan().hours / 24 == pytest.approx(21, abs=0.5)  # section 2.3 of the paper


def test_attentions_flops() -> None:
    """Against counting products: scores and weighted sums, 2 FLOPs each, times 3 with the backward."""
    layers, heads, dim, length = 3, 4, 8, 16
    products = 2 * heads * length * length * dim  # scores, then their sum over the values
    whole = 3 * 2 * products * layers
    assert attention_flops(layers, heads * dim, length, causal=False) * length == whole
    assert attention_flops(layers, heads * dim, length) * length == whole / 2
    with_attention = plan(attention=attention_flops(80, 8192, 2048))
    assert with_attention.flops - plan().flops == pytest.approx(1.4e12 * 6 * 80 * 8192 * 2048)


def test_cost_needs_a_price() -> None:
    rows = {row[0]: row for row in plan().table().rows}
    assert rows["cost"] == ("cost", None, "unavailable: no price of a GPU-hour given")
    priced = plan(price=2.5)
    assert priced.cost == pytest.approx(2.5 * priced.gpu_hours)
    assert {row[0]: row for row in priced.table().rows}["cost"][2] == "modelled: GPU-hours x price"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"utilisation": 40}, "utilisation 40; expected a share of the peak"),
        ({"gpus": 0}, "gpus 0; expected more than 0"),
        ({"tokens": -1}, "tokens -1; expected more than 0"),
        ({"price": -2}, "price -2"),
    ],
)
def test_plans_that_cannot_be_are_refused(change: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        plan(**change)
