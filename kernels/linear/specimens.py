"""The skinny linear's launch with its modelled bytes, and its operands for other kernels that multiply so.

Shapes: N rows, C input channels, O weight rows, F outputs (O, or O / 2 with swiglu), S scale groups.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from random import Random

import torch
from torch import Tensor

from lit_eff.kernels.catalogue import Operation
from lit_eff.kernels.linear.call import Product
from lit_eff.kernels.linear.io_model import LinearShape, linear_traffic
from lit_eff.kernels.linear.operator import linear_launch
from lit_eff.kernels.linear.plan import GROUP
from lit_eff.kernels.linear.reference import ACTIVATIONS, Norm
from lit_eff.profiling.modelled import ModelledLaunch

EPSILON = 1e-5
NORMS = ("", "rms", "rms_plain", "layer")


@dataclass(frozen=True)
class ProductCase:
    """``outputs`` are the weight's rows; ``norm`` is one of `NORMS` (``rms_plain`` has no gain).

    ``groups`` are the scale groups of an int8 weight, 0 for a weight in ``dtype``.
    """

    rows: int
    channels: int
    outputs: int
    bias: bool = False
    norm: str = ""
    groups: int = 0
    dtype: str = "float16"

    @property
    def element(self) -> torch.dtype:
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    def product(self, device: torch.device, capability: int) -> Product:
        """Rows, weight, scales and norm, on new tensors; products are about as large as the rows."""
        x_NC = self.randn(device, self.rows, self.channels)
        norm = self.norm_of(device, self.channels)
        size, scale = (self.outputs, self.channels), self.channels**-0.5
        if not self.groups:
            return Product(x_NC, scale * self.randn(device, *size), None, norm, capability)
        weight_OC = torch.randint(-128, 128, size, dtype=torch.int8, device=device)
        scales_OS = scale / 128 * torch.rand(self.outputs, self.groups, device=device)
        return Product(x_NC, weight_OC, scales_OS, norm, capability)

    def norm_of(self, device: torch.device, *size: int) -> Norm | None:
        """With gain and shift of that size."""
        if not self.norm:
            return None
        gain = None if self.norm == "rms_plain" else self.randn(device, *size)
        shift = self.randn(device, *size) if self.norm == "layer" else None
        return Norm(gain, shift, EPSILON, self.norm == "layer")

    def bias_of(self, device: torch.device, *size: int) -> Tensor | None:
        return self.randn(device, *size) if self.bias else None

    def randn(self, device: torch.device, *size: int) -> Tensor:
        return torch.randn(*size, dtype=self.element, device=device)

    @property
    def shape(self) -> LinearShape:
        size = self.element.itemsize
        return LinearShape(
            self.rows,
            self.channels,
            self.outputs,
            input_bytes=size,
            weight_bytes=1 if self.groups else size,
            output_bytes=size,
            bias_bytes=size * self.bias,
            gain_bytes=size * (self.norm in ("rms", "layer")),
            shift_bytes=size * (self.norm == "layer"),
            norm=bool(self.norm),
            centered=self.norm == "layer",
            groups=self.groups,
        )


@dataclass(frozen=True)
class LinearCase(ProductCase):
    """A product with what may follow it; ``activation`` is one of `ACTIVATIONS`, or empty for none."""

    residual: bool = False
    activation: str = ""

    @property
    def shape(self) -> LinearShape:
        return replace(
            super().shape,
            residual_bytes=self.element.itemsize * self.residual,
            swiglu=self.activation == "swiglu",
        )


def draw_product(random: Random) -> ProductCase:
    groups = random.choice((0, 0, 1, 2, 3))
    channels = groups * GROUP * random.randint(1, 2) if groups > 1 else random.randint(1, 200)
    return ProductCase(
        random.choice((1, 2, 8, random.randint(1, 40))),
        channels,
        random.randint(1, 150),
        random.random() < 0.5,
        random.choice(NORMS),
        groups,
        random.choice(("float16", "float32")),
    )


def draw(random: Random) -> LinearCase:
    product = draw_product(random)
    activation = random.choice(("", *ACTIVATIONS))
    even = product.outputs + product.outputs % 2  # halves for swiglu
    return LinearCase(
        **{**asdict(product), "outputs": even}, residual=random.random() < 0.5, activation=activation
    )


def launches(case: LinearCase, device: torch.device, capability: int) -> list[ModelledLaunch]:
    product, shape = case.product(device, capability), case.shape
    residual_NF = case.randn(device, case.rows, shape.outputs) if case.residual else None
    launch = linear_launch(
        product,
        case.randn(device, case.rows, shape.outputs),
        case.bias_of(device, case.outputs),
        residual_NF,
        case.activation or None,
    )
    return [ModelledLaunch(launch, linear_traffic(shape, product.plan), shape.flops)]


OPERATIONS = (
    Operation(
        name="linear",
        case=LinearCase,
        small=(
            LinearCase(1, 1, 1),
            LinearCase(5, 100, 70),
            LinearCase(5, 100, 70, bias=True, dtype="float32"),
            LinearCase(5, 100, 70, residual=True, activation="gelu"),
            LinearCase(17, 100, 70, norm="rms", activation="gelu_tanh"),
            LinearCase(5, 300, 70, norm="rms_plain", activation="silu", dtype="float32"),
            LinearCase(16, 256, 64, norm="layer", activation="swiglu"),
            LinearCase(5, 256, 100, groups=1),
            LinearCase(5, 256, 100, groups=2, norm="rms", dtype="float32"),
            LinearCase(35, 20, 20, bias=True),
            LinearCase(3, 40, 3100),  # one lane
            LinearCase(20, 256, 88, bias=True, residual=True, activation="swiglu", norm="layer", groups=4),
        ),
        typical=LinearCase(8, 2048, 11264, activation="swiglu", norm="rms", dtype="bfloat16"),
        draw=draw,
        launches=launches,
    ),
)
