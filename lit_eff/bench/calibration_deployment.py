"""What calibration promises of a checkpoint beside what it then does, over random re-splits of its prompts.

Calibration and test prompts of the recipe are put together and divided again, at random, as many as before.
Each time one part selects a threshold, and predicts risk and layers per token; the other part measures both.
Losses belong to prompts, so every prompt is continued once, under the whole grid, and a re-split costs
nothing. The measured risk is of finitely many prompts, and re-splits share prompts: its share over delta
tells whether the promise is kept, but is no test at level epsilon.

Shapes: n prompts, K thresholds and before them the full model, which never exits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_eff.bench.results import Measurement
from lit_eff.calibration.config import CalibrationConfig
from lit_eff.calibration.job import measure_grid
from lit_eff.calibration.ltt import learn_then_test
from lit_eff.cli.calibrate import CalibrationInputs
from lit_eff.cli.calibration_run import bars
from lit_eff.errors import UserError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Resplit:
    """One division of the prompts.

    Attributes:
        threshold: selected on one part; ``None``: never exit.
        predicted_layers, predicted_risk: on that part.
        layers, risk: on the other.
    """

    threshold: float | None
    predicted_layers: float
    predicted_risk: float
    layers: float
    risk: float


@dataclass(frozen=True)
class Deployment:
    """All re-splits of one checkpoint's prompts."""

    config: CalibrationConfig
    full_layers: int
    resplits: tuple[Resplit, ...]

    @property
    def over_delta(self) -> float:
        """Share of re-splits whose measured risk exceeds delta."""
        return float(np.mean([each.risk > self.config.delta for each in self.resplits]))

    def mean(self, name: str) -> float:
        """Of an attribute of :class:`Resplit`."""
        return float(np.mean([getattr(each, name) for each in self.resplits]))


def measure(given: CalibrationInputs, resplits: int, seed: int) -> Deployment:
    """Continue every prompt, of calibration and test, and divide them again.

    Raises:
        UserError: for a model that cannot be calibrated, vectors, several risks or several measures.
    """
    config = given.config
    if config.learns or config.also or not config.shared or len(config.measures) > 1:
        raise UserError(
            "re-splits are of one risk and measure, and of thresholds shared by all exits; add "
            "calibration.also=[] calibration.measure=softmax_response calibration.procedure=fixed_sequence "
            "calibration.learning_sequences=0, and numbers as calibration.thresholds"
        )
    prompts = np.concatenate([given.prompts, given.held_out])
    with bars() as progress:
        grid = measure_grid(given.loaded, prompts, given.config, progress)
    found = resplit(grid.losses_RBK[0], grid.launched_BK, given.config, resplits, seed)
    return Deployment(given.config, given.loaded.model.config.exit_layers[-1], tuple(found))


def resplit(
    losses_nK: Floats, layers_nK: Floats, config: CalibrationConfig, resplits: int, seed: int
) -> Iterator[Resplit]:
    """Divide the prompts ``resplits`` times: ``config.sequences`` select, all others measure.

    Args:
        losses_nK, layers_nK: of each prompt, float64 ``(n, K + 1)``; column 0 is the full model.
    """
    rng = np.random.default_rng(seed)
    for _ in range(resplits):
        calibration, test = np.split(rng.permutation(len(losses_nK)), [config.sequences])
        selected = learn_then_test(
            losses_nK[calibration, 1:],
            delta=config.delta,
            epsilon=config.epsilon,
            p_value=config.p_value,
            procedure=config.procedure,
        ).selected
        column = 0 if selected is None else selected + 1
        yield Resplit(
            threshold=None if selected is None else config.shared[selected],
            predicted_layers=float(layers_nK[calibration, column].mean()),
            predicted_risk=float(losses_nK[calibration, column].mean()),
            layers=float(layers_nK[test, column].mean()),
            risk=float(losses_nK[test, column].mean()),
        )


def measurements(found: Deployment) -> list[Measurement]:
    """A row of the file for each figure of each re-split; the last is the share over delta."""
    result = []

    def add(cell: str, contender: str, quantity: str, unit: str, rate: float | None) -> None:
        result.append(Measurement("deployment", cell, contender, quantity, unit, ours=True, rate=rate))

    for index, each in enumerate(found.resplits):
        cell = f"re-split {index + 1}"
        add(cell, "selected", "threshold", "confidence", each.threshold)
        for contender, layers, risk in (
            ("predicted", each.predicted_layers, each.predicted_risk),
            ("measured", each.layers, each.risk),
        ):
            add(cell, contender, "layers per token", "layers", layers)
            add(cell, contender, "risk", "share", risk)
    add("all", "measured", "re-splits over delta", "share", found.over_delta)
    return result


def table(found: Deployment) -> Any:
    """A ``rich`` table: a row a re-split, then their means and the share over delta."""
    from rich.table import Table

    config = found.config
    table = Table(
        title=f"{config.sequences:,} prompts calibrate, {config.test_sequences:,} others measure\n"
        f"delta {config.delta:g}, epsilon {config.epsilon:g}, {found.full_layers} layers",
        caption=f"{found.over_delta:.0%} of {len(found.resplits)} re-splits have a risk over delta",
        show_footer=True,
    )
    columns = (
        ("layers\npredicted", "predicted_layers", "{:.2f}"),
        ("layers\nmeasured", "layers", "{:.2f}"),
        ("risk\npredicted", "predicted_risk", "{:.4f}"),
        ("risk\nmeasured", "risk", "{:.4f}"),
    )
    table.add_column("re-split", "mean")
    table.add_column("threshold", justify="right")
    for title, name, form in columns:
        table.add_column(title, form.format(found.mean(name)), justify="right")
    table.add_column("over\ndelta", f"{found.over_delta:.0%}")
    for index, each in enumerate(found.resplits):
        table.add_row(
            str(index + 1),
            "never" if each.threshold is None else f"{each.threshold:g}",
            *(form.format(getattr(each, name)) for _, name, form in columns),
            "yes" if each.risk > config.delta else "",
        )
    return table
