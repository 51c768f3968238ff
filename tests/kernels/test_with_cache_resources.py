"""The portable kernels on a cache, compiled for GPUs that are not here, fit shared memory and registers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_eff.profiling.devices import get_device
from tests.kernels.compiling import compile_all

PROGRAM = """
import dataclasses, json, sys, torch
from lit_eff.kernels.attention.with_cache import operator
from lit_eff.kernels.attention.with_cache.call import CacheCall
from lit_eff.profiling.compiled import compile_launch
operator.obstacle = lambda call: "the portable kernel is wanted"
torch.set_default_device("meta")
for request in json.loads(sys.argv[1]):
    batch, slots, head_dim = request["batch"], request["slots"], request["head_dim"]
    dtype, queries, page = getattr(torch, request["dtype"]), request["queries"], request["page"]
    q = torch.empty(batch, queries, 32, head_dim, dtype=dtype)
    cache = torch.empty(*(batch * slots // page, page) if page else (batch, slots), 8, head_dim, dtype=dtype)
    table = torch.empty(batch, slots // page, dtype=torch.int32) if page else None
    tree = torch.empty(batch, queries, queries, dtype=torch.bool) if request["tree"] else None
    head = torch.empty(32) if request["heads"] else None
    lengths = torch.empty(batch, dtype=torch.int32)
    call = CacheCall(q, cache, cache, lengths, table, None, tree, head, head, 0.1, request["window"],
                     request["softcap"], None, target=request["capability"])
    for launch in operator.launches(call, torch.empty_like(q), torch.empty(batch, 32, queries)):
        unit = {"unit": call.deal.unit.value}
        print(json.dumps(dataclasses.asdict(compile_launch(launch, request["capability"])) | unit))
"""
# The tiles of sm_80 serve the Ada cards too, whose shared memory is smaller. Of Hopper's, two programs share.
LIMITS = {80: get_device("L4").shared_memory_per_block, 90: get_device("H100 SXM").shared_memory_per_block}
USUAL: dict[str, Any] = {
    "batch": 16,
    "slots": 8192,
    "queries": 8,
    "head_dim": 128,
    "dtype": "bfloat16",
    "page": 0,
    "tree": False,
    "heads": False,
    "window": None,
    "softcap": None,
}


@pytest.mark.parametrize("capability", [80, 90])
def test_usual_forms_fit_and_hardly_spill(capability: int, tmp_path: Path) -> None:
    forms: list[dict[str, Any]] = [
        {"batch": 1, "queries": 1},
        {"batch": 12},
        {"batch": 64, "slots": 4096, "page": 16},
        {"head_dim": 64},
    ]
    compiled = compile_all(PROGRAM, [USUAL | form | {"capability": capability} for form in forms], tmp_path)
    assert {each["unit"] for each in compiled} == {"chunk", "segment", "row"}
    assert {each["kernel"] for each in compiled} == {"cache_split_kernel", "cache_combine_kernel"}
    for each in compiled:
        # On Hopper what is used before and after the loops over the steps waits in local memory.
        assert each["spill_store_bytes"] <= (128 if capability == 90 else 32), each
        assert 2 * (each["shared_memory_bytes"] + 1024) <= LIMITS[90] + 1024, each  # two programs an SM
        assert each["shared_memory_bytes"] <= LIMITS[capability], each


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_form_fits(capability: int, tmp_path: Path) -> None:
    forms: list[dict[str, Any]] = [
        {"tree": True, "window": 100},
        {"softcap": 30.0, "heads": True, "page": 64},
        {"batch": 256, "tree": True, "heads": True},
        {"batch": 1, "queries": 1, "page": 1, "window": 1},
        *({"head_dim": head_dim} for head_dim in (16, 80, 256)),
        *({"head_dim": head_dim, "dtype": "float32"} for head_dim in (64, 128, 256)),
    ]
    for each in compile_all(PROGRAM, [USUAL | form | {"capability": capability} for form in forms], tmp_path):
        assert each["shared_memory_bytes"] <= LIMITS[capability], each
        # Of what is used before and after the loop. On Hopper another kernel takes the forms that spill most.
        assert each["spill_store_bytes"] <= (1024 if capability == 90 else 512), each
