"""RoPE with cache write, compiled for GPUs that are not here, does not spill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.kernels.compiling import compile_all

PROGRAM = """
import dataclasses, json, sys, torch
from lit_eff.kernels.rope.call import RopeCall, RowSlots
from lit_eff.kernels.rope.operator import rope_launch
from lit_eff.kernels.rope.reference import RotaryTables
from lit_eff.profiling.compiled import compile_launch
torch.set_default_device("meta")
for r in json.loads(sys.argv[1]):
    dtype, (heads, kv_heads, head_dim) = getattr(torch, r["dtype"]), r["heads"]
    qkv = torch.empty(8, r["queries"], heads + 2 * kv_heads, head_dim, dtype=dtype)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=2)
    cache = torch.empty(8, 4096, kv_heads, head_dim, dtype=dtype)
    lengths = torch.empty(8, dtype=torch.int64)
    table = torch.empty(8, 64, dtype=torch.int32) if r["paged"] else None
    counts, positions = (lengths, torch.empty(8, r["queries"]).long()) if r["ragged"] else (None, None)
    angles = RotaryTables(*2 * [torch.empty(4096, r["rotary"] // 2)]) if r["rotary"] else None
    gain = torch.empty(head_dim, dtype=dtype) if r["norm"] else None
    slots = RowSlots(lengths, counts, table, positions)
    call = RopeCall(q, k, v, torch.empty_like(q), cache, cache, slots, angles, gain, gain, 1e-6,
                    r["capability"])
    print(json.dumps(dataclasses.asdict(compile_launch(rope_launch(call), r["capability"])) | r))
"""
USUAL: dict[str, Any] = {
    "heads": (32, 8, 128),
    "queries": 1,
    "dtype": "bfloat16",
    "rotary": 128,
    "paged": False,
    "ragged": False,
    "norm": False,
}
FORMS: list[dict[str, Any]] = [
    {},
    {"heads": (9, 3, 64), "rotary": 64, "queries": 8, "paged": True},
    {"heads": (16, 8, 128), "norm": True, "ragged": True, "paged": True},
    {"heads": (12, 12, 80), "rotary": 32, "queries": 5, "dtype": "float32", "norm": True},
    {"heads": (8, 1, 256), "rotary": 0, "dtype": "float16"},
]


def test_forms_do_not_spill(tmp_path: Path) -> None:
    requests = [USUAL | form | {"capability": capability} for capability in (80, 90) for form in FORMS]
    for each in compile_all(PROGRAM, requests, tmp_path):
        assert each["spill_store_bytes"] == 0, each
        assert each["registers_per_thread"] <= 64, each
        assert each["shared_memory_bytes"] <= 16 * 1024, each
