"""Propagation's launches with their modelled bytes.

Shapes: L skipped layers, B batch, T query length, C model dim, K kv heads, D head dim, O = 2 K D rows of a
layer's weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch

from lit_eff.kernels.catalogue import Operation
from lit_eff.kernels.linear.specimens import NORMS, ProductCase
from lit_eff.kernels.propagate.call import PropagateCall
from lit_eff.kernels.propagate.io_model import PropagateShape, propagate_traffic
from lit_eff.kernels.rope.specimens import EPSILON, PlacesCase, draw_places
from lit_eff.profiling.modelled import ModelledLaunch


@dataclass(frozen=True)
class PropagateCase(PlacesCase):
    """``norm`` is one of `NORMS`; ``k_norm`` is the keys', head by head, which takes a second launch."""

    layers: int = 2
    channels: int = 72
    norm: str = "rms"
    bias: bool = False
    k_norm: bool = False

    @property
    def product(self) -> ProductCase:
        """Of one layer."""
        rows, outputs = self.batch * self.queries, 2 * self.kv_heads * self.head_dim
        return ProductCase(rows, self.channels, outputs, self.bias, self.norm, dtype=self.dtype)


def draw(random: Random) -> PropagateCase:
    return PropagateCase(
        **draw_places(random),
        layers=random.randint(1, 3),
        channels=random.randint(1, 150),
        norm=random.choice(NORMS),
        bias=random.random() < 0.5,
        k_norm=random.random() < 0.5,
    )


def launches(case: PropagateCase, device: torch.device, capability: int) -> list[ModelledLaunch]:
    """Products, rotation and write of all layers; with a norm of the keys, that and their rotation."""
    drawn, product, layers = case.drawn(device), case.product, case.layers
    cache = (layers, *drawn.cache, case.kv_heads, case.head_dim)
    k_cache, v_cache = (case.randn(device, *cache) for _ in range(2))
    call = PropagateCall(
        case.randn(device, product.rows, case.channels),
        case.channels**-0.5 * case.randn(device, layers, product.outputs, case.channels),
        k_cache,
        v_cache,
        drawn.slots,
        product.norm_of(device, layers, case.channels),
        product.bias_of(device, layers, product.outputs),
        case.tables(device),
        case.randn(device, layers, case.head_dim) if case.k_norm else None,
        EPSILON,
        capability,
    )
    shape = PropagateShape(
        layers,
        product.shape,
        drawn.places,
        case.kv_heads,
        case.head_dim,
        drawn.cache[0] * drawn.cache[1],
        k_norm_bytes=case.element.itemsize * case.k_norm,
    )
    modelled = zip(call.launches(), propagate_traffic(shape, call.plan), (shape.flops, 0), strict=False)
    return [ModelledLaunch(*each) for each in modelled]


OPERATIONS = (
    Operation(
        name="propagate",
        case=PropagateCase,
        small=(
            PropagateCase(1, 1, 2, 32, rotary=32, layers=1, norm="rms_plain"),
            PropagateCase(2, 2, 2, 32, rotary=32, layers=1),
            PropagateCase(3, 2, 2, 32, norm="", dtype="float32"),
            PropagateCase(2, 1, 2, 32, rotary=12, norm="layer", bias=True, dtype="float32"),
            PropagateCase(5, 4, 1, 32, page=4, rotary=32, ragged=True, positions=True, layers=1),
            PropagateCase(3, 2, 3, 22, rotary=6, k_norm=True, channels=100, layers=1, dtype="float32"),
            PropagateCase(3, 2, 1, 32, rotary=32, page=2, ragged=True, k_norm=True, bias=True),
            PropagateCase(2, 2, 3, 18, rotary=18, layers=3, channels=33, dtype="float32"),
            PropagateCase(9, 2, 1, 32, rotary=32, page=4, positions=True, layers=1),
            PropagateCase(2, 1, 5, 130, rotary=130, k_norm=True, layers=1, channels=20, dtype="float32"),
            PropagateCase(4, 1, 1, 64, rotary=64, ragged=True, norm="layer", dtype="float32"),
            PropagateCase(17, 1, 1, 32, rotary=32, k_norm=True, positions=True, ragged=True, layers=1),
        ),
        typical=PropagateCase(64, 1, 8, 128, 4096, rotary=128, page=16, layers=16, channels=4096, dtype="bfloat16"),
        draw=draw,
        launches=launches,
    ),
)
