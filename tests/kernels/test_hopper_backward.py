"""The Hopper gradient kernels without a Hopper GPU: what they take compiled, in which order they add."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.profiling.devices import get_device
from tests.kernels.compiling import compile_all
from tests.kernels.in_python import in_python

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper")

from lit_eff.kernels.attention.hopper import backward, turns
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


def check(compiled: list[dict[str, Any]]) -> None:
    for each in compiled:
        assert each["shared_memory_bytes"] <= get_device("H100 SXM").shared_memory_per_block, each
        # A few sizes and addresses are kept in local memory across a step's products.
        assert each["spill_store_bytes"] <= (80 if each["kernel"] == "attention_gradient_kernel" else 0), each


def test_default_kernels_fit(tmp_path: Path) -> None:
    compiled = compile_all(
        PROGRAM, [(head_dim, True, "bfloat16", False) for head_dim in GRADIENT_TILES], tmp_path
    )
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
    check(compile_all(PROGRAM, forms, tmp_path))


@pytest.mark.parametrize("at_once", [132, 114, 78])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", list(GRADIENT_TILES))
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 128, 128, 1, 1),
        (2, 700, 700, 4, 2),
        (1, 300, 1000, 2, 2),
        (1, 70, 5000, 1, 1),
        (3, 1000, 300, 40, 40),
        (1, 9000, 9000, 2, 2),
        (5, 8000, 8000, 3, 3),  # 63 key blocks: on 132 multiprocessors two heads a round
        (2, 4096, 4096, 16, 16),
    ],
)
def test_programs_take_every_turn_and_never_wait_for_ever(
    sizes: tuple[int, int, int, int, int],
    head_dim: int,
    causal: bool,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Program p takes items p, p + programs, ... in order; a step ends when its turn to add has come.

    An item waits for lower items only, so the lowest unfinished one can always go on; or for those of its own
    head, when all of them run in the same round.
    """
    monkeypatch.setattr(backward, "multiprocessors", lambda _: at_once)
    launch = launches(sizes, head_dim, causal)[1]
    problem = turns.Problem(**{name: launch.arguments[name] for name in turns.Problem._fields})
    tiles = (GRADIENT_TILES[head_dim].block_m, GRADIENT_TILES[head_dim].block_n, causal)
    work_of, block_of = in_python(turns.work_of), in_python(turns.query_block)
    seen_by = in_python(turns._key_blocks_seen)
    turn_of = in_python(turns._turn, _key_blocks_seen=seen_by)

    def steps_of(item: int) -> list[tuple[Any, int]]:
        work = work_of(item, problem, *tiles)
        head = work.i_b * problem.heads + work.i_kv * problem.group
        blocks = [block_of(work, i, problem) for i in range(work.count)]
        turns_there = [turn_of(work, i_m, problem, *tiles) for i_m in blocks]
        return [
            ((head + g, m), turn)
            for g in range(problem.group)
            for m, turn in zip(blocks, turns_there, strict=True)
        ]

    walks = [steps_of(item) for item in range(problem.items)]
    programs = launch.grid[0]
    assert programs <= at_once
    assert launch.options["launch_cooperative_grid"]  # they wait for one another
    if problem.rotated:
        assert programs % problem.key_blocks == 0
        assert programs >= 0.9 * min(at_once, problem.items)
    else:
        assert programs == min(at_once, problem.items)
    assert all(walks), "the kernel's loading warp fetches keys in an item's first step"
    walks_of = [[step for walk in walks[p::programs] for step in walk] for p in range(programs)]
    counts: dict[Any, int] = {}
    done = [0] * programs
    while any(n < len(walk) for n, walk in zip(done, walks_of, strict=True)):
        moved = False
        for p, walk in enumerate(walks_of):
            if done[p] < len(walk):
                block, turn = walk[done[p]]
                if counts.get(block, 0) == turn:
                    counts[block] = turn + 1
                    done[p] += 1
                    moved = True
        assert moved, "programs wait in a circle"
    heads = problem.batch * problem.heads
    for i_m in range(problem.query_blocks):
        assert {counts.get((head, i_m), 0) for head in range(heads)} == {seen_by(i_m, problem, *tiles)}

    # What the scaling warps wait for is done before the last items, which they are to hide behind.
    last_adder = {block: item for item, walk in enumerate(walks) for block, _ in walk}
    for i in range(problem.scaled):
        assert last_adder.get(divmod(i, problem.query_blocks), -1) < problem.items - programs


def test_lengths_do_not_recompile() -> None:
    first, second = (launches(sizes, 64, True)[1] for sizes in [(1, 128, 128, 2, 1), (2, 700, 333, 4, 4)])
    numbers = {name: value for name, value in first.arguments.items() if type(value) is int}
    differing = {name for name, value in numbers.items() if value != second.arguments[name]}
    assert differing <= {each.name for each in first.kernel.params if each.do_not_specialize}
