"""The kernels, compiled for GPUs that are not here, fit their shared memory and hardly spill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_eff.kernels.attention.tiles import forward_tiles, key_gradient_tiles, query_gradient_tiles
from lit_eff.profiling.devices import get_device
from tests.kernels.compiling import compile_all

PROGRAM = """
import dataclasses, json, sys, torch
from lit_eff.kernels.attention.io_model import AttentionShape
from lit_eff.kernels.attention.resources import compiled_resources
for dtype, capability, softcap, sizes in json.loads(sys.argv[1]):
    packed = sizes.pop("packed", False)
    shape, dtype = AttentionShape(**sizes), getattr(torch, dtype)
    for each in compiled_resources(shape, dtype, capability, softcap=softcap, packed=packed):
        print(json.dumps(dataclasses.asdict(each)))
"""
# The sm_80 tiles serve the Ada cards too, whose shared memory is smaller.
LIMITS = {80: get_device("L4").shared_memory_per_block, 90: get_device("H100 SXM").shared_memory_per_block}
USUAL = {"batch": 4, "queries": 1024, "keys": 1024, "heads": 16, "kv_heads": 4, "causal": True}


@pytest.mark.parametrize("capability", [80, 90])
def test_bfloat16_kernels_fit(capability: int, tmp_path: Path) -> None:
    requests = [("bfloat16", capability, None, {**USUAL, "head_dim": head_dim}) for head_dim in (64, 128)]
    compiled = compile_all(PROGRAM, requests, tmp_path)
    assert [each["kernel"] for each in compiled[:4]] == [
        "attention_forward_kernel",
        "attention_delta_kernel",
        "attention_key_gradient_kernel",
        "attention_query_gradient_kernel",
    ]
    for each in compiled:
        assert each["shared_memory_bytes"] <= LIMITS[capability], each
        # Grouped heads: dK and dV need a few registers more than there are (test_tiles has the other rows).
        assert each["spill_store_bytes"] <= (64 if "key_gradient" in each["kernel"] else 0), each


def test_sizes_of_one_compile(tmp_path: Path) -> None:
    """Triton turns every argument that equals 1 into a constant, which the kernels must not trip over."""
    one = dict.fromkeys(("batch", "queries", "keys", "heads", "kv_heads"), 1) | {"head_dim": 16}
    forms: list[dict[str, Any]] = [{}, {"starts": [0], "window": 1, "documents": []}]
    compiled = compile_all(PROGRAM, [("float16", 90, 20.0, {**one, **form}) for form in forms], tmp_path)
    assert len(compiled) == 11  # documents come with three more launches


def test_dropout_computes_four_weights_at_once(tmp_path: Path) -> None:
    """One Philox for four weights, though the kernels write one a weight: `dropout` says how.

    Of its 14 upper halves the first three are taken once a row or column, so 11 for four are the least.
    """
    sizes = {**USUAL, "causal": False, "head_dim": 64, "dropout": True}
    compiled = {
        each["kernel"]: each for each in compile_all(PROGRAM, [("bfloat16", 90, None, sizes)], tmp_path)
    }
    loops = {"forward": (2, forward_tiles), "query_gradient": (2, query_gradient_tiles)}
    for name, (copies, tiles) in (loops | {"key_gradient": (1, key_gradient_tiles)}).items():
        kernel, tile = f"attention_{name}_kernel", tiles(64, 2, 90)
        weights = copies * tile.block_m * tile.block_n // (32 * compiled[kernel]["num_warps"])
        (path,) = tmp_path.glob(f"*/{kernel}.ptx")
        assert 11 / 4 <= path.read_text().count("mul.hi.u32") / weights <= 11 / 2, kernel


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_form_fits(capability: int, tmp_path: Path) -> None:
    forms: list[dict[str, Any]] = [
        {"causal": False},
        {"window": 256},
        {"causal": False, "window": 256, "alibi": True},
        {"dropout": True, "sinks": True},
        {"packed": True},
        {"documents": []},
        {"starts": [0] * 4, "window": 256, "documents": []},
    ]
    requests: list[Any] = [
        ("float16", capability, softcap, {**USUAL, "head_dim": head_dim, **form})
        for head_dim in (16, 48, 128)
        for form in forms
        for softcap in (None, 30.0)
    ]
    requests += [("float16", capability, None, {**USUAL, "head_dim": 256, **form}) for form in forms]
    requests += [
        ("float32", capability, None, {**USUAL, "head_dim": head_dim}) for head_dim in (32, 64, 128, 256)
    ]
    for each in compile_all(PROGRAM, requests, tmp_path):
        assert each["shared_memory_bytes"] <= LIMITS[capability], each
