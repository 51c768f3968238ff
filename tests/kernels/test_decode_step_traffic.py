"""Bytes that a decode step requests of weights and cache, counted in the interpreter, equal the model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from lit_eff.kernels.decode_step.arguments import Shape
from lit_eff.kernels.decode_step.io_model import layers_traffic, weight_bytes
from lit_eff.profiling.counted import count_traffic
from tests.kernels.counting import requested
from tests.kernels.step_cases import SMALL, SMALL_PLAN, StepCase

KEPT = {"qkv", "output", "gate_up", "down", "embedding", "k", "v", "history"}


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("count", [1, 4, 18])
@pytest.mark.parametrize(
    "shape", [SMALL, replace(SMALL, channels=80, heads=3, kv_heads=1, head_dim=32)], ids=str
)
def test_counts_are_as_modelled(shape: Shape, count: int) -> None:
    case = StepCase(shape)
    positions = [(7 * index + 15) % case.slots for index in range(count)]
    row = case.rows([index % shape.vocabulary for index in range(count)], positions, [1] * count)
    with count_traffic() as launches:
        case.run(row, SMALL_PLAN)
    modelled = layers_traffic(shape, positions, 4, 4)
    for kind, expected in (("loads", modelled.reads), ("stores", modelled.writes)):
        counted: Counter[str] = Counter()
        for launch in launches:
            counted.update(requested(launch, kind))
        assert {name: size for name, size in counted.items() if name in KEPT} == expected


def test_weights_are_read_once_up_to_a_tile_of_rows() -> None:
    """A step of 1.1B is all weights: one row's keys and values at slot 256 are less than a half percent."""
    shape = Shape(22, 2048, 32, 4, 64, 5632, 32_000)
    traffic = layers_traffic(shape, [256], 2, 2)
    matrices = sum(traffic.reads[name] for name in ("qkv", "output", "gate_up", "down"))
    assert matrices + 2 * 32_000 * 2048 == weight_bytes(shape, torch.bfloat16.itemsize)
    assert traffic.total < 1.005 * matrices
    sixteen = layers_traffic(shape, [256] * 16, 2, 2)
    assert all(sixteen.reads[name] == traffic.reads[name] for name in ("qkv", "gate_up", "down"))
