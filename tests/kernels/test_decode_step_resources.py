"""The decode step, compiled for GPUs that are not here, fits shared memory and registers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_eff.profiling.devices import get_device
from tests.kernels.compiling import compile_all

PROGRAM = """
import dataclasses, json, sys, torch
from dataclasses import replace
from lit_eff.kernels.decode_step.arguments import Rows, Shape, Weights
from lit_eff.kernels.decode_step.call import cache_of, new_work, step_launches
from lit_eff.kernels.decode_step.plan import plan_of
from lit_eff.profiling.compiled import compile_launch
torch.set_default_device("meta")
for r in json.loads(sys.argv[1]):
    shape, slots, rows = Shape(*r["shape"]), 2048, 8
    plan = plan_of(shape.qkv // 2, shape.channels, shape.inner, 132, r["capability"], r["per_processor"])
    layers, channels, inner = shape.layers, shape.channels, shape.inner
    def wide(*sizes):
        return torch.empty(sizes, dtype=torch.bfloat16)
    angles = torch.empty(slots, shape.head_dim // 2)
    weights = Weights(wide(shape.vocabulary, channels), wide(2 * layers + 1, channels),
                      wide(layers, shape.qkv, channels), wide(layers, channels, shape.attended),
                      wide(layers, 2 * inner, channels), wide(layers, channels, inner), angles, angles)
    place = torch.empty(rows, dtype=torch.int32)
    row = Rows(place.long(), place, place, torch.empty(rows, slots, dtype=torch.int64))
    cache = wide(layers, rows, slots, shape.kv_heads, shape.head_dim)
    work = new_work(shape, plan, rows, slots, weights.embedding)
    for launch in step_launches(shape, replace(plan, form=r["form"]), weights, row, cache_of(cache, cache),
                                work, rows, (0, layers), r["capability"])[:6]:
        print(json.dumps(dataclasses.asdict(compile_launch(launch, r["capability"]))))
"""
LIMITS = {80: get_device("L4").shared_memory_per_block, 90: get_device("H100 SXM").shared_memory_per_block}
SHAPES = {"1.1B": (22, 2048, 32, 4, 64, 5632, 32000), "135M": (30, 576, 9, 3, 64, 1536, 49152)}
# Bytes a thread; what is kept across a barrier or a whole phase goes to the stack, not what a loop needs.
SPILLS = 64


def check(requests: list[dict[str, Any]], cache: Path) -> None:
    for each in compile_all(PROGRAM, requests, cache):
        assert each["spill_store_bytes"] <= SPILLS, each
        assert each["shared_memory_bytes"] <= LIMITS[each["capability"]], each


def form(name: str, form: str, capability: int, per_processor: int = 1) -> dict[str, Any]:
    return {
        "shape": SHAPES[name],
        "form": form,
        "capability": capability,
        "per_processor": per_processor,
    }


@pytest.mark.parametrize("capability", [80, 90])
def test_usual_forms_fit(capability: int, tmp_path: Path) -> None:
    check([form("1.1B", "persistent", capability)], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_form_fits(capability: int, tmp_path: Path) -> None:
    requests = [form(name, each, capability) for name in SHAPES for each in ("persistent", "launches")]
    check([*requests, *(form(name, "persistent", capability, 2) for name in SHAPES)], tmp_path)
