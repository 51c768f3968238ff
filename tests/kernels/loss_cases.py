"""Inputs of the multi-exit loss for its tests, and the reference's answer in float64.

Shapes: N tokens, C model dim, V vocabulary, E exits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lit_eff.kernels.cross_entropy import (
    ExitLosses,
    multi_exit_cross_entropy,
    multi_exit_cross_entropy_reference,
)


@dataclass(frozen=True)
class LossCase:
    """``shared``: whether the exits share one matrix; ``biased``: which exits have a bias (they share it)."""

    exits: int = 3
    tokens: int = 11
    width: int = 16
    vocabulary: int = 133
    shared: bool = True
    biased: tuple[int, ...] = ()
    token_weights: bool = False
    ignored: int = 5  # every so-manieth token; 0 for none
    options: dict[str, Any] = field(default_factory=dict)

    def draw(self, dtype: torch.dtype, device: str = "cpu") -> LossInputs:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            values = torch.randn(shape, dtype=torch.float64, generator=generator) * scale
            return values.to(dtype).to(device).requires_grad_()

        hiddens = [random(self.tokens, self.width) for _ in range(self.exits)]
        count = 1 if self.shared else self.exits
        matrices = [random(self.vocabulary, self.width, scale=2 / self.width**0.5) for _ in range(count)]
        biases = [random(self.vocabulary)] if self.biased else []
        targets_N = torch.randint(0, self.vocabulary, (self.tokens,), generator=generator)
        if self.ignored:
            targets_N[:: self.ignored] = self.options.get("ignore_index", -100)
        weights_N = torch.rand(self.tokens, generator=generator) if self.token_weights else None
        return LossInputs(
            self,
            hiddens,
            matrices,
            biases,
            targets_N.to(device),
            None if weights_N is None else weights_N.to(device),
        )

    def __str__(self) -> str:
        features = [f"{name} {value}" for name, value in self.options.items()]
        features += [] if self.shared else ["own matrices"]
        features += [f"bias {self.biased}"] if self.biased else []
        features += ["token weights"] if self.token_weights else []
        return f"{self.exits}x{self.tokens}x{self.width}x{self.vocabulary} {', '.join(features)}"


@dataclass
class LossInputs:
    case: LossCase
    hiddens: list[Tensor]
    matrices: list[Tensor]
    biases: list[Tensor]
    targets_N: Tensor
    token_weights_N: Tensor | None

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.hiddens, *self.matrices, *self.biases]

    @property
    def exit_weights(self) -> list[float]:
        return [(e + 1) / 4 for e in range(self.case.exits)]

    def _per_exit(self) -> dict[str, Any]:
        exits = range(self.case.exits)
        return {
            "weights": [self.matrices[0 if self.case.shared else e] for e in exits],
            "biases": [self.biases[0] if e in self.case.biased else None for e in exits],
        }

    def ours(self, **more: Any) -> ExitLosses:
        per_exit = self._per_exit()
        return multi_exit_cross_entropy(
            more.pop("hiddens", self.hiddens),
            self.matrices[0] if self.case.shared else per_exit["weights"],
            self.targets_N,
            bias_V=per_exit["biases"],
            exit_weights=self.exit_weights,
            token_weights_N=self.token_weights_N,
            **{**self.case.options, **more},
        )

    def reference(self, accumulate: torch.dtype) -> ExitLosses:
        per_exit = self._per_exit()
        return multi_exit_cross_entropy_reference(
            self.hiddens,
            per_exit["weights"],
            self.targets_N,
            biases=per_exit["biases"],
            exit_weights=self.exit_weights,
            token_weights_N=self.token_weights_N,
            accumulate=accumulate,
            **self.case.options,
        )

    def gradients(self, losses: ExitLosses, factor: float = 1.0) -> list[Tensor]:
        return list(torch.autograd.grad(losses.loss * factor, self.leaves))


FEATURES: dict[str, dict[str, Any]] = {
    "softcap": {"softcap": 3.0},
    "smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 0.01},
    "distillation": {"distillation": 0.4},
    "hot": {"distillation": 0.4, "temperature": 2.0},
    "index": {"ignore_index": 7},
}
EVERYTHING = {
    "softcap": 4.0, "label_smoothing": 0.1, "z_loss": 0.02, "distillation": 0.4, "temperature": 2.0,
}  # fmt: skip
