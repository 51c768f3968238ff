"""Propagation, compiled for GPUs that are not here, fits shared memory and registers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_eff.profiling.devices import get_device
from tests.kernels.compiling import compile_all

PROGRAM = """
import dataclasses, json, sys, torch
from lit_eff.kernels.linear import Norm
from lit_eff.kernels.propagate.call import PropagateCall
from lit_eff.kernels.rope.call import RowSlots
from lit_eff.kernels.rope.reference import RotaryTables
from lit_eff.profiling.compiled import compile_launch
torch.set_default_device("meta")
for r in json.loads(sys.argv[1]):
    dtype, (kv_heads, head_dim), channels = getattr(torch, r["dtype"]), r["heads"], r["channels"]
    outputs = 2 * kv_heads * head_dim
    cache = torch.empty(8, 8, 4096, kv_heads, head_dim, dtype=dtype)
    gain = torch.empty(8, channels, dtype=dtype)
    norm = {"rms": Norm(gain), "rms_plain": Norm(), "layer": Norm(gain, gain, 1e-5, True)}.get(r["norm"])
    counts = torch.empty(8, dtype=torch.int64)
    table = torch.empty(8, 64, dtype=torch.int32) if r["paged"] else None
    tables = RotaryTables(*2 * [torch.empty(4096, r["rotary"] // 2)]) if r["rotary"] else None
    call = PropagateCall(
        torch.empty(8 * r["queries"], channels, dtype=dtype),
        torch.empty(8, 3 * outputs, channels, dtype=dtype)[:, -outputs:], cache, cache,
        RowSlots(counts, counts, table, None), norm,
        torch.empty(8, outputs, dtype=dtype) if r["bias"] else None, tables,
        torch.empty(8, head_dim, dtype=dtype) if r["k_norm"] else None, 1e-6, r["capability"])
    for launch in call.launches():
        print(json.dumps(dataclasses.asdict(compile_launch(launch, r["capability"])) | r))
"""
LIMITS = {80: get_device("L4").shared_memory_per_block, 90: get_device("H100 SXM").shared_memory_per_block}
USUAL: dict[str, Any] = {
    "heads": (8, 128),
    "channels": 4096,
    "queries": 1,
    "dtype": "bfloat16",
    "norm": "rms",
    "rotary": 128,
    "bias": False,
    "paged": False,
    "k_norm": False,
}
FORMS: list[dict[str, Any]] = [
    {},
    {"heads": (3, 64), "channels": 576, "rotary": 64, "queries": 8, "paged": True},
    {"heads": (32, 128), "bias": True},
    {"heads": (12, 64), "channels": 768, "norm": "layer", "bias": True, "rotary": 0},
    {"channels": 1024, "k_norm": True, "paged": True},
    {"heads": (12, 80), "norm": "rms_plain", "rotary": 32, "dtype": "float32"},
    {"heads": (8, 64), "norm": None, "rotary": 64, "dtype": "float16"},
]


def test_forms_fit_and_do_not_spill(tmp_path: Path) -> None:
    requests = [USUAL | form | {"capability": capability} for capability in (80, 90) for form in FORMS]
    for each in compile_all(PROGRAM, requests, tmp_path):
        assert each["spill_store_bytes"] == 0, each
        assert each["shared_memory_bytes"] <= LIMITS[each["capability"]], each
