"""Plans a training run: model, tokens and GPUs to FLOPs, hours, energy, carbon and cost. All of it modelled.

A forward and backward pass costs 6 FLOPs a parameter and token (Kaplan et al. 2020, section 2.1), and
attention adds 12 x layers x width x length a token, half of that if causal (PaLM, Chowdhery et al. 2022,
appendix B). Utilisation is the share of the GPUs' dense peak that these FLOPs attain (MFU).
"""

from __future__ import annotations

from dataclasses import dataclass

from lit_eff.errors import UserError
from lit_eff.profiling.carbon import LECTURE, Grid
from lit_eff.profiling.devices import Device
from lit_eff.profiling.report import ReportTable

FLOPS_PER_PARAMETER = 6  # a token: 2 forward, 4 backward
HOUR = 3600


@dataclass(frozen=True)
class TrainingPlan:
    """A run and what it takes.

    Args:
        parameters: of the matrix products: all but the input embedding's, to be exact.
        tokens: that training reads, repeats included.
        gpus: how many.
        device: which.
        utilisation: the model FLOPs utilisation to expect; compiled training reaches 0.3 to 0.5.
        watts: of one board at full load.
        dtype: whose dense peak counts.
        attention: FLOPs a token beside the parameters', from :func:`attention_flops`.
        grid: the data centre's overhead and its grid's carbon.
        price: of a GPU for an hour, in any currency; None if unknown.

    Raises:
        UserError: for values that cannot be.
    """

    parameters: float
    tokens: float
    gpus: int
    device: Device
    utilisation: float
    watts: float
    dtype: str = "bfloat16"
    attention: float = 0
    grid: Grid = LECTURE
    price: float | None = None

    def __post_init__(self) -> None:
        for name in ("parameters", "tokens", "gpus", "watts"):
            value = getattr(self, name)
            if value <= 0:
                raise UserError(f"{name} {value:g}; expected more than 0")
        if not 0 < self.utilisation <= 1:
            raise UserError(
                f"utilisation {self.utilisation:g}; expected a share of the peak above 0 and at most 1, "
                "such as 0.4"
            )
        if self.price is not None and self.price < 0:
            raise UserError(f"price {self.price:g} of a GPU-hour; expected 0 or more")

    @property
    def flops(self) -> float:
        return self.tokens * (FLOPS_PER_PARAMETER * self.parameters + self.attention)

    @property
    def gpu_hours(self) -> float:
        return self.flops / (self.device.peak(self.dtype) * self.utilisation) / HOUR

    @property
    def hours(self) -> float:
        """From start to end, all GPUs at work throughout."""
        return self.gpu_hours / self.gpus

    @property
    def mwh(self) -> float:
        return self.grid.kwh(self.gpu_hours * HOUR * self.watts) / 1e3

    @property
    def tonnes(self) -> float:
        return self.grid.tonnes(self.mwh * 1e3)

    @property
    def cost(self) -> float | None:
        return None if self.price is None else self.gpu_hours * self.price

    def table(self) -> ReportTable:
        """A row a figure, each with its formula."""
        peak = f"{self.device.peak(self.dtype) / 1e12:g} TFLOP/s"
        attention = " + attention" if self.attention else ""
        price = "GPU-hours x price" if self.price is not None else "unavailable: no price of a GPU-hour given"
        rows = (
            ("training, FLOP", self.flops, f"modelled: tokens x (6 x parameters{attention})"),
            ("GPU-hours", self.gpu_hours, f"modelled: FLOP / ({peak} x utilisation {self.utilisation:g})"),
            ("hours", self.hours, f"modelled: GPU-hours / {self.gpus} GPUs"),
            ("energy, MWh", self.mwh, f"modelled: GPU-hours x {self.watts:g} W x PUE {self.grid.pue:g}"),
            ("carbon, tCO2e", self.tonnes, f"modelled: MWh x {self.grid.kg_per_kwh:g} kg/kWh"),
            ("cost", self.cost, price if self.price is None else f"modelled: {price}"),
        )
        return ReportTable(
            "Plan of a training run",
            f"{self.parameters:.3g} parameters, {self.tokens:.3g} tokens, {self.gpus} x {self.device.name}.",
            ("quantity", "value", "source"),
            rows,
        )


def attention_flops(layers: int, width: int, length: int, *, causal: bool = True) -> float:
    """FLOPs a token, forward and backward, of attention over sequences of ``length``: scores and their sum.

    ``width`` is heads x head dim. Causal attention skips half of the scores, as the kernels do.
    """
    return 12 * layers * width * length * (0.5 if causal else 1)


def utilisation(
    parameters: float, tokens: float, gpu_hours: float, device: Device, dtype: str = "bfloat16"
) -> float:
    """The utilisation (MFU) at which a run took ``gpu_hours``, without attention's FLOPs."""
    return FLOPS_PER_PARAMETER * parameters * tokens / (gpu_hours * HOUR * device.peak(dtype))
