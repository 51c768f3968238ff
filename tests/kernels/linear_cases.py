"""Calls of the skinny linear that several tests share."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lit_eff.kernels.linear import Norm, skinny_linear_reference
from lit_eff.kernels.linear.call import Product
from lit_eff.kernels.linear.plan import Plan

# Of several lanes and of one; channels of a step that fit in small calls.
PLANS = [Plan(16, 4, 16, 4, 3), Plan(64, 1, 32, 4, 3)]


@dataclass(frozen=True)
class LinearCase:
    """Sizes and features of one call; ``outputs`` are the weight's rows."""

    rows: int = 5
    channels: int = 100
    outputs: int = 70
    bias: bool = False
    residual: bool = False
    activation: str | None = None
    norm: str | None = None  # rms, rms_plain (no gain), layer
    groups: int = 0  # scale groups of an int8 weight

    def draw(self, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
        """All arguments."""
        generator = torch.Generator().manual_seed(zlib.crc32(str(self).encode()))

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

        scale = self.channels**-0.5
        stored = self.outputs // 2 if self.activation == "swiglu" else self.outputs
        arguments: dict[str, Any] = {
            "x_NC": 3 * randn(self.rows, self.channels),
            "weight_OC": scale * randn(self.outputs, self.channels),
            "activation": self.activation,
        }
        if self.groups:
            size = (self.outputs, self.channels)
            weight = torch.randint(-128, 128, size, generator=generator)
            arguments["weight_OC"] = weight.to(device, torch.int8)
            scales = torch.rand(self.outputs, self.groups, generator=generator)
            arguments["scales"] = (scale / 64 * scales).to(device)
        if self.bias:
            arguments["bias"] = randn(self.outputs)
        if self.residual:
            arguments["residual"] = randn(self.rows, stored)
        if self.norm is not None:
            gain = None if self.norm == "rms_plain" else randn(self.channels)
            shift = randn(self.channels) if self.norm == "layer" else None
            arguments["norm"] = Norm(gain, shift, 1e-5, centered=self.norm == "layer")
        return arguments


def widened(arguments: dict[str, Any], dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """The same values in another floating dtype; int8 stays."""

    def wide(value: Any) -> Any:
        return value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value

    changed = {name: wide(value) for name, value in arguments.items()}
    if changed.get("norm") is not None:
        changed["norm"] = Norm(*map(wide, changed["norm"]))
    return changed


def exact(arguments: dict[str, Any]) -> Tensor:
    return skinny_linear_reference(**widened(arguments), accumulate=torch.float64)


def product_of(arguments: dict[str, Any], target: int | None = None) -> Product:
    return Product(
        arguments["x_NC"], arguments["weight_OC"], arguments.get("scales"), arguments.get("norm"), target
    )


FEATURES: dict[str, dict[str, Any]] = {
    "bias": {"bias": True},
    "residual": {"residual": True},
    "gelu": {"activation": "gelu"},
    "gelu_tanh": {"activation": "gelu_tanh"},
    "silu": {"activation": "silu"},
    "swiglu": {"activation": "swiglu"},
    "rms": {"norm": "rms"},
    "rms_plain": {"norm": "rms_plain"},
    "layer": {"norm": "layer"},
    "int8": {"groups": 1, "channels": 256},
    "int8 in groups": {"groups": 2, "channels": 256},
}
EVERYTHING = LinearCase(
    bias=True, residual=True, activation="swiglu", norm="layer", groups=4, channels=256, outputs=88
)


def cases(rows: int) -> list[LinearCase]:
    """Each feature alone, and all of them."""
    return [
        LinearCase(rows),
        *(LinearCase(rows, **each) for each in FEATURES.values()),
        replace(EVERYTHING, rows=rows),
    ]
