"""Carbon of energy, and the lecture's table of what training language models emitted.

MWh = GPU-hours x W x PUE / 10^6, and tonnes of CO2 equivalent = MWh x kg/kWh: the GPUs' boards at full power,
the data centre's overhead on top, a grid's average. Source: LLaMA (Touvron et al. 2023), section 6, table 15,
which states every model under the same two factors.
"""

from __future__ import annotations

from dataclasses import dataclass

from lit_eff.errors import UserError
from lit_eff.profiling.report import ReportTable
from lit_eff.profiling.traffic import Number

PUE = 1.1  # power usage effectiveness: a data centre's energy over that of its computers
KG_PER_KWH = 0.385  # kg of CO2 equivalent a kWh, the average of the United States' grid
JOULES_PER_KWH = 3.6e6
MILLION = 10**6


@dataclass(frozen=True)
class Grid:
    """Where the energy is used: the data centre's overhead (at least 1) and its grid's kg CO2e a kWh.

    Raises: UserError: for factors that cannot be.
    """

    pue: float = PUE
    kg_per_kwh: float = KG_PER_KWH

    def __post_init__(self) -> None:
        if self.pue < 1:
            raise UserError(f"PUE {self.pue:g}; expected at least 1, total energy over that of the computers")
        if self.kg_per_kwh < 0:
            raise UserError(f"grid factor {self.kg_per_kwh:g}; expected kg CO2e a kWh, 0 or more")

    def kwh(self, joules: float) -> float:
        """kWh that the data centre draws for ``joules`` of its computers."""
        return joules / JOULES_PER_KWH * self.pue

    def tonnes(self, kwh: float) -> float:
        """Tonnes of CO2 equivalent of a data centre's kWh."""
        return kwh * self.kg_per_kwh / 1e3


LECTURE = Grid()


def footprint_table(joules: Number, tokens: int | None, grid: Grid = LECTURE) -> ReportTable:
    """kWh and tonnes of CO2e of a run, and of a million of its tokens if it tells how many it took."""
    factors = f"x PUE {grid.pue:g}", f"x {grid.kg_per_kwh:g} kg/kWh"
    values: tuple[float | None, ...] = (None, None, None)
    if joules.value is not None:
        kwh = grid.kwh(joules.value)
        values = (float(joules.value), kwh, grid.tonnes(kwh))
        source = f"{joules.source}: {joules.detail}"
        sources = (source, f"{source} {factors[0]}", f"{source} {' '.join(factors)}")
    else:
        sources = (f"unavailable: {joules.detail}",) * 3
    rows = tuple(
        (name, value, value * MILLION / tokens if value is not None and tokens else None, source)
        for name, value, source in zip(
            ("energy, J", "energy, kWh", "carbon, tCO2e"), values, sources, strict=True
        )
    )
    return ReportTable(
        "Energy and carbon",
        "Of the whole run and of a million tokens. kWh and CO2e are the data centre's, overhead included.",
        ("quantity", "run", "a million tokens", "source"),
        rows,
    )


@dataclass(frozen=True)
class TrainingRun:
    """A row of the lecture's table, with the MWh and tonnes that it prints."""

    model: str
    gpu: str
    watts: float
    gpu_hours: int
    printed_mwh: int
    printed_tonnes: int

    @property
    def mwh(self) -> float:
        return self.gpu_hours * self.watts * LECTURE.pue / 1e6

    @property
    def tonnes(self) -> float:
        return LECTURE.tonnes(self.mwh * 1e3)


RUNS = (
    TrainingRun("OPT-175B", "A100 80 GB", 400, 809_472, 356, 137),
    TrainingRun("BLOOM-175B", "A100 80 GB", 400, 1_082_880, 475, 183),
    TrainingRun("LLaMA-7B", "A100 80 GB", 400, 82_432, 36, 14),
    TrainingRun("LLaMA-13B", "A100 80 GB", 400, 135_168, 59, 23),
    TrainingRun("LLaMA-33B", "A100 80 GB", 400, 530_432, 233, 90),
    TrainingRun("LLaMA-65B", "A100 80 GB", 400, 1_022_362, 449, 173),
)


def lecture_table() -> ReportTable:
    """The lecture's table, computed beside printed: tonnes agree in every row, MWh in all but two."""
    rows = tuple(
        (
            run.model,
            run.gpu,
            run.watts,
            run.gpu_hours,
            round(run.mwh, 1),
            run.printed_mwh,
            round(run.tonnes, 1),
            run.printed_tonnes,
            "modelled",
        )
        for run in RUNS
    )
    differing = " and ".join(run.model for run in RUNS if round(run.mwh) != run.printed_mwh)
    return ReportTable(
        "Carbon of training language models",
        f"GPU-hours x W x PUE {LECTURE.pue:g}, then x {LECTURE.kg_per_kwh:g} kg/kWh. The printed MWh of "
        f"{differing} are not what the formula gives, by less than 0.4%.",
        (
            "model",
            "GPU",
            "W",
            "GPU-hours",
            "MWh, computed",
            "MWh, printed",
            "tCO2e, computed",
            "tCO2e, printed",
            "source",
        ),
        rows,
    )
