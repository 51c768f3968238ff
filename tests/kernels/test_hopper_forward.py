"""The Hopper forward kernel without a GPU: what it takes compiled, what it refuses, and its order of work."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.profiling.devices import get_device

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper")

from lit_eff.kernels.attention import hopper
from tests.kernels.compiling import compile_all

PROGRAM = """
import dataclasses, json, sys, torch
from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.kernels.attention.hopper.forward import forward_launch
from lit_eff.profiling.compiled import compile_launch
for head_dim, causal, options in json.loads(sys.argv[1]):
    with torch.device("meta"):
        q = torch.empty(4, 1024, 16, head_dim, dtype=torch.bfloat16)
        k = torch.empty(4, 1024, 4, head_dim, dtype=torch.bfloat16)
        lse = torch.empty(4, 16, 1024)
        extras = {"sinks_H": torch.empty(16), "starts_B": torch.empty(4, dtype=torch.int64)}
    options = {name: extras.get(name, value) for name, value in options.items()}
    call = AttentionCall(q, k, k, None, None, None, 0.125, causal, None, None, target=90)
    launch = forward_launch(dataclasses.replace(call, **options), q, lse)
    print(json.dumps(dataclasses.asdict(compile_launch(launch, 90))))
"""


def check(compiled: dict[str, Any], spills: int) -> None:
    assert compiled["shared_memory_bytes"] <= get_device("H100 SXM").shared_memory_per_block, compiled
    assert compiled["spill_store_bytes"] <= spills, compiled


def test_default_kernels_fit(tmp_path: Path) -> None:
    requests = [(head_dim, causal, {}) for head_dim in (64, 128) for causal in (False, True)]
    for compiled in compile_all(PROGRAM, requests, tmp_path):
        check(compiled, spills=64)  # numbers that a tile needs once, outside the loops


@pytest.mark.slow
def test_every_form_fits(tmp_path: Path) -> None:
    forms: list[dict[str, Any]] = [
        {"window": 256},
        {"softcap": 30.0},
        {"sinks_H": 1},
        {"starts_B": 1, "window": 300, "softcap": 20.0, "sinks_H": 1},
    ]
    requests = [
        (head_dim, causal, form) for head_dim in (64, 128) for causal in (False, True) for form in forms
    ]
    for compiled in compile_all(PROGRAM, requests, tmp_path):
        check(compiled, spills=512)


def call(head_dim: int = 64, dtype: torch.dtype = torch.bfloat16, **options: Any) -> AttentionCall:
    q, k = torch.empty(2, 8, 4, head_dim, dtype=dtype), torch.empty(2, 8, 2, head_dim, dtype=dtype)
    return dataclasses.replace(AttentionCall(q, k, k, None, None, None, 1.0, True, None, None), **options)


def test_what_is_taken() -> None:
    assert hopper.supported(call()) is None
    assert hopper.supported(call(128, torch.float16)) is None
    fused = torch.empty(2, 8, 6, 64, dtype=torch.bfloat16)
    q, k, v = fused.split([4, 1, 1], dim=2)
    assert hopper.supported(call(q_BTHD=q, k_BSKD=k, v_BSKD=v)) is None
    assert hopper.forward_supported(call(window=5, softcap=3.0)) is None


KEYS = torch.empty(2, 8, 2, 64, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (call(80), "head dim 80"),
        (call(dtype=torch.float32), "torch.float32"),
        (call(scale=-1.0), "scale -1"),
        (call(q_BTHD=torch.empty(0, 8, 4, 64, dtype=torch.bfloat16)), "empty"),
        (call(dropout_p=0.1), "dropout"),
        (call(alibi_H=torch.ones(4)), "ALiBi"),
        (call(documents_BT=torch.zeros(2, 8)), "documents"),
        (call(window=5), "window"),
        (call(q_BTHD=torch.empty(2, 8, 4, 65, dtype=torch.bfloat16)[..., :64]), "strides .* of q"),
        (call(v_BSKD=torch.empty(2, 8, 64, 2, dtype=torch.bfloat16).mT), "head dim of v is not contiguous"),
        (
            call(k_BSKD=torch.empty(1, 8, 2, 64, dtype=torch.bfloat16).expand(2, -1, -1, -1)),
            "strides .* of k",
        ),
        (
            call(k_BSKD=torch.empty(2 * 8 * 2 * 64 + 1, dtype=torch.bfloat16)[1:].view(2, 8, 2, 64)),
            "16 bytes",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(refused: AttentionCall, reason: str) -> None:
    obstacle = hopper.supported(refused)
    assert obstacle is not None
    assert re.search(reason, obstacle), obstacle


@pytest.mark.parametrize(
    ("head_dim", "causal", "queries"),
    [(64, False, 1024), (64, True, 1024), (64, True, 16384), (128, True, 4096)],
)
def test_programs_get_equal_work(head_dim: int, causal: bool, queries: int) -> None:
    """The order of tiles (`schedule.tile_of`), followed in Python: each once, and no program much longer."""
    from lit_eff.kernels.attention.hopper.forward import forward_launch
    from lit_eff.kernels.attention.hopper.shapes import forward_shape

    with torch.device("meta"):
        q = torch.empty(16384 // queries, queries, 2048 // head_dim, head_dim, dtype=torch.bfloat16)
        lse = torch.empty(q.shape[0], q.shape[2], queries)
    call = AttentionCall(q, q, q, None, None, None, 1.0, causal, None, None, target=90)
    launch, shape = forward_launch(call, q, lse), forward_shape(call)
    block_m, programs, together = 64 * shape.consumers, launch.grid[0], launch.arguments["together"]
    query_tiles, heads = -(-queries // block_m), q.shape[0] * q.shape[2]
    work, tiles = [0.0] * programs, []
    for i in range(query_tiles * heads):
        turn, place = divmod(i, programs)
        first_head = i // (together * query_tiles) * together
        rest, width = i - first_head * query_tiles, min(together, heads - first_head)
        tile = query_tiles - 1 - rest // width
        tiles.append((first_head + rest % width, tile))
        seen = min(queries, (tile + 1) * block_m) if causal else queries
        work[place if turn % 2 == 0 else programs - 1 - place] += seen / shape.block_n + 1
    assert sorted(tiles) == [(head, tile) for head in range(heads) for tile in range(query_tiles)]
    assert sum(work) / programs >= 0.94 * max(work)
