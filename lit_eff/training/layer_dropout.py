"""LayerSkip's layer dropout: whole layers are skipped, deeper ones more often, per sample.

Shape legend: L layers, B batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lit_eff.errors import UserError


@dataclass(frozen=True)
class LayerDropout:
    """Layer dropout p(l,t) = S(t) D(l) rate (Elhoushi et al. 2024, section 4.1.1).

    Attributes:
        rate: the last layer's probability of being dropped (the paper's p_max); 0 is off.
        growth: S(t): ``constant`` 1, for continued training; ``exponential`` from 0 to 1 over the run, for
            training from scratch.

    Raises:
        UserError: for a rate outside [0, 1).
    """

    rate: float = 0.0
    growth: Literal["constant", "exponential"] = "constant"

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate < 1.0:
            raise UserError(f"layer_dropout.rate is {self.rate}; expected a probability below 1")


def drop_probabilities(dropout: LayerDropout, layers: int, step: int, max_steps: int) -> tuple[float, ...]:
    """p(l,t) for l = 0..L-1: D(l) = exp(l ln2/(L-1)) - 1, S(t) = 1 or exp(t ln2/(T-1)) - 1."""
    scale = dropout.rate
    if dropout.growth == "exponential":
        scale *= _from_zero_to_one(step, max_steps)
    return tuple(scale * _from_zero_to_one(layer, layers) for layer in range(layers))


def _from_zero_to_one(index: int, count: int) -> float:
    return math.expm1(min(index, count - 1) * math.log(2) / max(count - 1, 1))


def keep_mask(
    dropout: LayerDropout,
    *,
    layers: int,
    batch: int,
    step: int,
    max_steps: int,
    seed: int,
    micro_batch: int,
) -> Tensor | None:
    """A float32 mask (L, B) on the CPU, 0 where a layer is the identity for a row; ``None`` when off.

    The draw depends on (seed, step, micro_batch) alone: a resumed run draws the same, and so does every
    rank. ``batch`` counts the rows of all ranks; each takes its own columns.
    """
    if dropout.rate == 0.0:
        return None
    uniform_LB = np.random.default_rng((seed, step, micro_batch)).random((layers, batch))
    drop_L1 = np.array(drop_probabilities(dropout, layers, step, max_steps))[:, None]
    return torch.from_numpy((uniform_LB >= drop_L1).astype(np.float32))
