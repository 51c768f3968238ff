"""The Hopper gradient kernels without a Hopper GPU: what they take compiled, in which order they add."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
import torch

from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.profiling.devices import get_device
from tests.kernels.compiling import compile_all

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper")

from lit_eff.kernels.attention.hopper import turns
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
        # The scaling warps have 24 registers a thread and keep their sizes in local memory.
        assert each["spill_store_bytes"] <= (256 if each["kernel"] == "attention_gradient_kernel" else 0), (
            each
        )


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


def in_python(name: str, place: int = 0) -> Callable[..., Any]:
    """A function of turns.py, which holds scalar arithmetic only, as plain Python for program ``place``."""
    scalars = SimpleNamespace(
        program_id=lambda _: place,
        minimum=min,
        maximum=max,
        cdiv=lambda a, b: -(-a // b),
        where=lambda condition, a, b: a if condition else b,
    )
    names = {**vars(turns), "gl": scalars}
    if name == "_turn":
        names["_key_blocks_seen"] = in_python("_key_blocks_seen")
    return FunctionType(getattr(turns, name).fn.__code__, names)


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
        (2, 4096, 4096, 16, 16),
    ],
)
def test_programs_take_every_turn_and_never_wait_for_ever(
    sizes: tuple[int, int, int, int, int], head_dim: int, causal: bool
) -> None:
    """Programs start in order on the multiprocessors there are; a step ends when its turn to add has come."""
    launch = launches(sizes, head_dim, causal)[1]
    problem = turns.Problem(**{name: launch.arguments[name] for name in turns.Problem._fields})
    tiles = (GRADIENT_TILES[head_dim].block_m, GRADIENT_TILES[head_dim].block_n, causal)
    block_of, turn_of, seen_by = (in_python(name) for name in ("query_block", "_turn", "_key_blocks_seen"))

    def steps_of(place: int) -> list[tuple[Any, int]]:
        work = in_python("work_of", place)(problem, *tiles)
        head = work.i_b * problem.heads + work.i_kv * problem.group
        blocks = [block_of(work, i, problem) for i in range(work.count)]
        turns_there = [turn_of(work, i_m, problem, *tiles) for i_m in blocks]
        return [
            ((head + g, m), turn)
            for g in range(problem.group)
            for m, turn in zip(blocks, turns_there, strict=True)
        ]

    walks = [steps_of(place) for place in range(launch.grid[0])]
    last_adder = {block: place for place, walk in enumerate(walks) for block, _ in walk}
    counts: dict[Any, int] = {}
    at_once = 132 if causal or not problem.rotated else max(problem.key_blocks, 66)
    running: dict[int, int] = {}
    started = finished = 0
    while finished < len(walks):
        while len(running) < at_once and started < len(walks):
            running[started] = 0
            started += 1
        moved = False
        for place, i_step in list(running.items()):
            block, turn = walks[place][i_step]
            if counts.get(block, 0) == turn:
                counts[block] = turn + 1
                running[place] += 1
                moved = True
            if running[place] == len(walks[place]):
                del running[place]
                finished += 1
        assert moved, "programs wait in a circle"
    heads = problem.batch * problem.heads
    for i_m in range(problem.query_blocks):
        assert {counts.get((head, i_m), 0) for head in range(heads)} == {seen_by(i_m, problem, *tiles)}

    blocks = heads * problem.query_blocks
    for place in range(problem.lag, len(walks)):
        for i in range(
            *((place - problem.lag + end) * blocks // len(walks) for end in (0, 1))
        ):  # what its scaling warps wait for has started before it
            assert last_adder.get(divmod(i, problem.query_blocks), -1) < place


def test_lengths_do_not_recompile() -> None:
    first, second = (launches(sizes, 64, True)[1] for sizes in [(1, 128, 128, 2, 1), (2, 700, 333, 4, 4)])
    numbers = {name: value for name, value in first.arguments.items() if type(value) is int}
    differing = {name for name, value in numbers.items() if value != second.arguments[name]}
    assert differing <= {each.name for each in first.kernel.params if each.do_not_specialize}
