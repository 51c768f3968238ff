"""The Hopper gradient kernels without a Hopper GPU: what they take compiled, in which order they add."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.profiling.devices import get_device

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper")

from lit_eff.kernels.attention.hopper.backward import GRADIENT_TILES, backward_launches

PROGRAM = """
import dataclasses, json, sys, torch
from tests.kernels.test_hopper_backward import launches
from lit_eff.profiling.compiled import compile_launch
for head_dim, causal, dtype, dlse in json.loads(sys.argv[1]):
    for launch in launches((2, 500, 500, 8, 2), head_dim, causal, getattr(torch, dtype), dlse):
        print(json.dumps(dataclasses.asdict(compile_launch(launch, 90))))
"""


def launches(
    sizes: tuple[int, int, int, int, int],
    head_dim: int,
    causal: bool,
    dtype: torch.dtype = torch.bfloat16,
    dlse: bool = False,
) -> list[Any]:
    batch, queries, keys, heads, kv_heads = sizes
    with torch.device("meta"):
        q = torch.empty(batch, queries, heads, head_dim, dtype=dtype)
        k = torch.empty(batch, keys, kv_heads, head_dim, dtype=dtype)
        lse = torch.empty(batch, heads, queries)
    call = AttentionCall(q, k, k, None, None, None, 0.125, causal, None, None, target=90)
    return backward_launches(call, q, lse, q, lse if dlse else None, lse, q, k, k)


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


def check(compiled: list[dict[str, Any]]) -> None:
    for each in compiled:
        assert each["shared_memory_bytes"] <= get_device("H100 SXM").shared_memory_per_block, each
        # The scaling warps have 24 registers a thread and keep their sizes in local memory.
        assert each["spill_store_bytes"] <= (256 if each["kernel"] == "attention_gradient_kernel" else 0), (
            each
        )


def test_default_kernels_fit(tmp_path: Path) -> None:
    compiled = compile_all([(head_dim, True, "bfloat16", False) for head_dim in GRADIENT_TILES], tmp_path)
    assert [each["kernel"] for each in compiled[:3]] == [
        "attention_row_sums_kernel",
        "attention_gradient_kernel",
        "attention_scale_query_gradient_kernel",
    ]
    check(compiled)


@pytest.mark.slow
def test_every_form_fits(tmp_path: Path) -> None:
    forms = [
        (head_dim, causal, dtype, dlse)
        for head_dim in GRADIENT_TILES
        for causal, dtype, dlse in [
            (False, "bfloat16", True),
            (False, "float16", False),
            (True, "float16", True),
        ]
    ]
    check(compile_all(forms, tmp_path))


def turns_taken(sizes: tuple[int, int, int, int, int], head_dim: int, causal: bool) -> dict[Any, list[int]]:
    """Simulated programs of turns.py: who adds to each query block of each kv head, by turn."""
    arguments = launches(sizes, head_dim, causal)[1].arguments
    tiles = GRADIENT_TILES[head_dim]
    blocks, key_blocks, together = (arguments[name] for name in ("query_blocks", "key_blocks", "together"))
    queries, keys = sizes[1:3]
    kv_heads = sizes[0] * sizes[4]
    taken: dict[Any, list[int]] = {}
    for place in range(key_blocks * kv_heads):
        before = place // (together * key_blocks) * together
        place_in_group = place - before * key_blocks
        width = min(together, kv_heads - before)
        head, rank = before + place_in_group % width, place_in_group // width
        backwards = causal and before // together % 2 == 1
        n = rank if backwards else key_blocks - 1 - rank
        start = max(n * tiles.block_n - (keys - queries), 0) // tiles.block_m if causal else 0
        for m in range(start, blocks):
            last = min((m + 1) * tiles.block_m, queries) + keys - queries
            seen = min(key_blocks, -(-last // tiles.block_n)) if causal else key_blocks
            opener = ((m + 1) * key_blocks - 1) // blocks if arguments["rotated"] else key_blocks - 1
            turn = (n if backwards else seen - 1 - n) if causal else (opener - n) % key_blocks
            if causal or not arguments["rotated"]:
                assert turn == 0 or taken[head, m].count(turn - 1) == 1  # only ever waits for those before it
            taken.setdefault((head, m), []).append(turn)
    return taken


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", list(GRADIENT_TILES))
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 128, 128, 1, 1),
        (2, 700, 700, 4, 2),
        (1, 300, 1000, 2, 2),
        (3, 1000, 300, 40, 40),
        (1, 9000, 9000, 2, 2),
    ],
)
def test_every_turn_is_taken_once(sizes: tuple[int, int, int, int, int], head_dim: int, causal: bool) -> None:
    for turns in turns_taken(sizes, head_dim, causal).values():
        assert sorted(turns) == list(range(len(turns)))


def test_lengths_do_not_recompile() -> None:
    first, second = (launches(sizes, 64, True)[1] for sizes in [(1, 128, 128, 2, 1), (2, 700, 333, 4, 4)])
    numbers = {name: value for name, value in first.arguments.items() if type(value) is int}
    differing = {name for name, value in numbers.items() if value != second.arguments[name]}
    assert differing <= {each.name for each in first.kernel.params if each.do_not_specialize}
