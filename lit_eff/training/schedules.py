"""Learning-rate schedules: a factor that is a pure function of the step and the run's length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lit_eff.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """How the learning rate moves from 0 through its peak to ``final_ratio`` times its peak.

    Fractions are of ``trainer.max_steps``, so that a shorter run keeps its shape.

    Attributes:
        kind: ``cosine`` decays from the end of the warm-up on; ``wsd`` (warm-up, stable, decay; Hu et al.
            2024) holds the peak and then decays as 1 - sqrt over the last ``decay`` of the run (Hagele et
            al. 2024); ``constant`` only warms up.
        warmup: fraction of the steps with a linear warm-up.
        decay: fraction of the steps in which ``wsd`` decays.
        final_ratio: learning rate at the end, relative to the peak.

    Raises:
        UserError: for fractions outside [0, 1] or that overlap.
    """

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: float = 0.02
    decay: float = 0.2
    final_ratio: float = 0.1

    def __post_init__(self) -> None:
        for name in ("warmup", "decay", "final_ratio"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"schedule.{name} is {getattr(self, name)}; expected a fraction from 0 to 1")
        if self.kind == "wsd" and self.warmup + self.decay > 1.0:
            raise UserError(
                f"schedule.warmup {self.warmup} and schedule.decay {self.decay} overlap; "
                "expected a sum of at most 1"
            )

    def factor(self, step: int, max_steps: int) -> float:
        """The multiplier of the peak learning rate for optimizer step ``step`` (0-based) of ``max_steps``."""
        warmup = round(self.warmup * max_steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.kind == "constant":
            return 1.0
        start = warmup if self.kind == "cosine" else max_steps - round(self.decay * max_steps)
        if step < start or start >= max_steps:
            return 1.0
        progress = min((step - start) / (max_steps - start), 1.0)
        shape = (1 + math.cos(math.pi * progress)) / 2 if self.kind == "cosine" else 1 - math.sqrt(progress)
        return self.final_ratio + (1 - self.final_ratio) * shape
