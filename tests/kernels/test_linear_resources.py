"""Skinny linear and exit confidence, compiled for GPUs that are not here, fit shared memory and registers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_eff.profiling.devices import get_device
from tests.kernels.compiling import compile_all

PROGRAM = """
import dataclasses, json, sys, torch
from lit_eff.kernels.confidence import operator as confidence
from lit_eff.kernels.linear import Norm
from lit_eff.kernels.linear.call import Product
from lit_eff.kernels.linear.operator import linear_launch
from lit_eff.profiling.compiled import compile_launch
torch.set_default_device("meta")
for r in json.loads(sys.argv[1]):
    dtype, (outputs, channels), rows = getattr(torch, r["dtype"]), r["weight"], r["rows"]
    x = torch.empty(rows, channels, dtype=dtype)
    weight = torch.empty(outputs, channels, dtype=torch.int8 if r["groups"] else dtype)
    scales = torch.empty(outputs, r["groups"]) if r["groups"] else None
    gain = torch.empty(channels, dtype=dtype)
    norm = {"rms": Norm(gain), "layer": Norm(gain, gain, 1e-5, True)}.get(r["norm"])
    product = Product(x, weight, scales, norm, r["capability"])
    stored = outputs // 2 if r["activation"] == "swiglu" else outputs
    out = torch.empty(rows, stored, dtype=dtype)
    residual = out if r["residual"] else None
    launches = [linear_launch(product, out, weight[:, 0].to(dtype) if residual is not None else None,
                              residual, r["activation"])]
    if r["confidence"]:
        launches = confidence.launches(product, None, 30.0, torch.empty(rows), "entropy",
                                       confidence.empty_outputs(x))
    for launch in launches:
        print(json.dumps(dataclasses.asdict(compile_launch(launch, r["capability"]))))
"""
# The tiles of sm_80 serve the Ada cards too, whose shared memory is smaller.
LIMITS = {80: get_device("L4").shared_memory_per_block, 90: get_device("H100 SXM").shared_memory_per_block}
USUAL: dict[str, Any] = {
    "weight": (28672, 4096),
    "rows": 8,
    "dtype": "bfloat16",
    "groups": 0,
    "norm": None,
    "activation": None,
    "residual": False,
    "confidence": False,
}
USED: list[dict[str, Any]] = [
    {"weight": (2048, 2048), "residual": True},
    {"weight": (2048, 5632), "residual": True, "norm": "layer"},
    {"weight": (11264, 2048), "norm": "rms", "activation": "swiglu"},
    {"weight": (576, 576), "norm": "rms"},
    {"norm": "rms", "activation": "swiglu", "rows": 100},
    {"groups": 32, "norm": "rms"},
    {"weight": (128256, 4096), "confidence": True, "norm": "rms"},
    {"weight": (49152, 576), "confidence": True, "norm": "rms"},
]


@pytest.mark.parametrize("capability", [80, 90])
def test_usual_forms_fit_and_do_not_spill(capability: int, tmp_path: Path) -> None:
    for each in compile_all(PROGRAM, [USUAL | form | {"capability": capability} for form in USED], tmp_path):
        assert each["spill_store_bytes"] == 0, each
        assert each["shared_memory_bytes"] <= LIMITS[capability], each


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_form_fits(capability: int, tmp_path: Path) -> None:
    forms = [
        {**form, **change}
        for form in USED
        for change in (
            {"rows": 640},
            {"dtype": "float32"},
            {"groups": 1},
            {"norm": "layer"},
        )
    ]
    for each in compile_all(PROGRAM, [USUAL | form | {"capability": capability} for form in forms], tmp_path):
        assert each["shared_memory_bytes"] <= LIMITS[capability], each
