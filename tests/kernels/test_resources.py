"""The kernels, compiled for GPUs that are not here, fit their shared memory and hardly spill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_eff.profiling.devices import get_device

PROGRAM = """
import dataclasses, json, sys, torch
from lit_eff.kernels.attention.resources import compiled_resources
for head_dim, dtype, capability, options in json.loads(sys.argv[1]):
    for each in compiled_resources(head_dim, getattr(torch, dtype), capability, **options):
        print(json.dumps(dataclasses.asdict(each)))
"""
# The same binary runs on every part of a generation: A100 (sm_80) tiles serve the smaller Ada cards too.
LIMITS = {80: get_device("L4").shared_memory_per_block, 90: get_device("H100 SXM").shared_memory_per_block}


def compile_all(requests: list[Any], cache: Path) -> list[dict[str, Any]]:
    """In another process: this one runs the interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(requests)],
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("capability", [80, 90])
def test_bfloat16_kernels_fit(capability: int, tmp_path: Path) -> None:
    requests = [(head_dim, "bfloat16", capability, {}) for head_dim in (64, 128)]
    compiled = compile_all(requests, tmp_path)
    assert [each["kernel"] for each in compiled[:4]] == [
        "attention_forward_kernel",
        "attention_delta_kernel",
        "attention_key_gradient_kernel",
        "attention_query_gradient_kernel",
    ]
    for each in compiled:
        assert each["shared_memory_bytes"] <= LIMITS[capability], each
        assert each["registers_per_thread"] <= 255
        assert each["spill_store_bytes"] <= 128, each


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_form_fits(capability: int, tmp_path: Path) -> None:
    forms: list[dict[str, Any]] = [
        {"causal": False},
        {"window": 256},
        {"softcap": 30.0},
        {"documents": True},
        {"starts": True, "window": 256, "softcap": 30.0, "documents": True},
    ]
    requests = [(head_dim, "float16", capability, form) for head_dim in (16, 48, 128) for form in forms]
    requests += [(head_dim, "float32", capability, {}) for head_dim in (32, 64, 128)]
    for each in compile_all(requests, tmp_path):
        assert each["shared_memory_bytes"] <= LIMITS[capability], each
