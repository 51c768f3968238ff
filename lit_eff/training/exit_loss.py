"""What each exit's loss weighs, and which exits a step trains: pure functions of the step.

Nothing here is remembered between steps, so a resumed run continues exactly where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lit_eff.errors import UserError


@dataclass(frozen=True)
class Curriculum:
    """Which exits a training step computes. The deepest weighted exit is always one of them.

    Attributes:
        kind: ``all`` exits at every step; ``rotational``: every R-th exit, shifted by one each step;
            ``gradual``: from the last layer down, one more layer every T/2L steps (T steps, L layers), so
            that all are on from half the run. Rotational and gradual are LayerSkip's (Elhoushi et al. 2024).
        every: the R of ``rotational``; an exit is trained once in R steps.

    Raises:
        UserError: for ``every`` below 1.
    """

    kind: Literal["all", "rotational", "gradual"] = "all"
    every: int = 2

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"curriculum.every is {self.every}; expected a positive number of steps")


@dataclass(frozen=True)
class ExitLoss:
    """How the losses of the exits add up. Weights are normalised to sum to one over the exits of a step.

    Attributes:
        weights: ``uniform``; ``linear``, by layers run (CALM, Schuster et al. 2022: i / sum of i);
            ``layerskip`` (Elhoushi et al. 2024, section 4.1.2), small for early exits, with ``e_scale``;
            ``geometric``, 2^i for the i-th exit; ``only_last``; ``only_exits``: all but the last, uniform,
            with everything but the exits' own heads frozen.
        e_scale: LayerSkip's scale of the early exits' losses, 0 to 1.
        distillation: share of each intermediate exit's loss, 0 to 1, that is temperature^2 * KL to the last
            exit's detached distribution instead of cross-entropy with the data.
        temperature: divides both exits' logits in the distillation term.
        curriculum: which exits a step trains.

    Raises:
        UserError: for values out of range.
    """

    weights: Literal["uniform", "linear", "layerskip", "geometric", "only_last", "only_exits"] = "linear"
    e_scale: float = 0.2
    distillation: float = 0.0
    temperature: float = 1.0
    curriculum: Curriculum = field(default_factory=Curriculum)

    def __post_init__(self) -> None:
        for name in ("e_scale", "distillation"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"exit_loss.{name} is {getattr(self, name)}; expected a number from 0 to 1")
        if not self.temperature > 0.0:
            raise UserError(f"exit_loss.temperature is {self.temperature}; expected a positive number")

    @property
    def frozen_backbone(self) -> bool:
        return self.weights == "only_exits"


def raw_weights(loss: ExitLoss, exit_layers: tuple[int, ...]) -> tuple[float, ...]:
    """One unnormalised weight per exit index; ``exit_layers`` counts layers run, the last being L."""
    last = len(exit_layers) - 1
    match loss.weights:
        case "uniform":
            return (1.0,) * (last + 1)
        case "linear":
            return tuple(float(layers) for layers in exit_layers)
        case "layerskip":
            return tuple(_layerskip(layers - 1, exit_layers[-1], loss.e_scale) for layers in exit_layers)
        case "geometric":
            return tuple(2.0**index for index in range(last + 1))
        case "only_last":
            return (0.0,) * last + (1.0,)
        case "only_exits":
            return (1.0,) * last + (0.0,)


def _layerskip(layer: int, layers: int, e_scale: float) -> float:
    """LayerSkip's e(l), l from 0: e_scale * sum_(i<=l) i, and L-1 + e_scale * sum_(i<=L-2) i for the last."""
    if layer < layers - 1:
        return e_scale * layer * (layer + 1) / 2
    return layers - 1 + e_scale * (layers - 2) * (layers - 1) / 2


def is_active(
    curriculum: Curriculum, exit_index: int, exit_layers: tuple[int, ...], step: int, max_steps: int
) -> bool:
    """Whether the curriculum's C(t, e) is 1, leaving aside the exit that is always on."""
    match curriculum.kind:
        case "all":
            return True
        case "rotational":
            return exit_index % curriculum.every == step % curriculum.every
        case "gradual":
            layers = exit_layers[-1]
            return 2 * layers * step >= (layers - exit_layers[exit_index]) * max_steps


def weights_at(loss: ExitLoss, exit_layers: tuple[int, ...], step: int, max_steps: int) -> dict[int, float]:
    """Exit index -> weight for the exits that this step trains, shallow to deep; the weights sum to one.

    LayerSkip's C(t,e) w(e) / sum of C w, with the deepest weighted exit always on, because a step without
    it would leave the deep layers without a gradient.

    Args:
        step: optimizer steps done, 0-based.
        max_steps: the run's length (``gradual`` alone reads it).
    """
    raw = raw_weights(loss, exit_layers)
    deepest = max((index for index, weight in enumerate(raw) if weight > 0), default=len(raw) - 1)
    active = {
        index: weight
        for index, weight in enumerate(raw)
        if weight > 0
        and (index == deepest or is_active(loss.curriculum, index, exit_layers, step, max_steps))
    }
    total = sum(active.values())
    return {index: weight / total for index, weight in active.items()}
