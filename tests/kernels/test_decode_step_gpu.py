"""The decode step, compiled: both forms at real widths, bits of rows, replays of a graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lit_eff.kernels.decode_step.arguments import Shape
from lit_eff.kernels.decode_step.call import cache_of, new_work, step_launches
from lit_eff.kernels.decode_step.plan import Plan, plan_of
from lit_eff.kernels.device import capability_of, multiprocessors
from tests.kernels.step_cases import StepCase, persistent

pytestmark = pytest.mark.gpu

WIDE = Shape(layers=3, channels=2048, heads=32, kv_heads=4, head_dim=64, inner=5632, vocabulary=500)
NARROW = Shape(layers=4, channels=576, heads=9, kv_heads=3, head_dim=64, inner=1536, vocabulary=500)
# Chunks of keys that are full or hold one slot, several chunks; two rows of one sequence.
ROWS = ([3, 0, 49, 7, 9], [0, 512, 900, 901, 511], [0, 1, 2, 2, 3])


def case_of(shape: Shape, dtype: torch.dtype = torch.bfloat16) -> StepCase:
    return StepCase(shape, sequences=4, slots=1024, dtype=dtype, device="cuda")


def plan_for(shape: Shape, per_processor: int = 1) -> Plan:
    device = torch.device("cuda", torch.cuda.current_device())
    return plan_of(
        shape.qkv // 2, shape.channels, shape.inner, multiprocessors(device), capability_of(device),
        per_processor,
    )  # fmt: skip


def same(got: Tensor, expected: Tensor) -> bool:
    return torch.equal(got.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [WIDE, NARROW], ids=str)
def test_as_good_as_torch_in_both_forms(shape: Shape, dtype: torch.dtype) -> None:
    case = case_of(shape, dtype)
    row = case.rows(*ROWS)
    true, plain = case.reference(row, torch.float64), case.reference(row)
    launches = case.run(row, replace(plan_for(shape), form="launches"))
    together = case.run(row, persistent(plan_for(shape)))
    for ours, other, theirs, exact in zip(launches, together, plain, true, strict=True):
        small = 2e-3 * exact.abs().max()
        assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max() + small
        assert same(ours, other)


@pytest.mark.parametrize("shape", [WIDE, NARROW], ids=str)
@pytest.mark.parametrize("start", [0, 120, 505, 900])
def test_rows_alone_and_in_company(shape: Shape, start: int) -> None:
    plan, count = persistent(plan_for(shape)), 9
    case, one_by_one = case_of(shape), case_of(shape)
    positions = list(range(start, start + count))
    verified, k_LBSKD, v_LBSKD = case.run(case.rows([5] * count, positions, [1] * count), plan)
    for index, position in enumerate(positions):
        row = one_by_one.rows([5], [position], [1])
        hidden, one_by_one.k_LBSKD, one_by_one.v_LBSKD = one_by_one.run(row, plan)
        assert same(hidden[0], verified[index])
    assert same(one_by_one.k_LBSKD, k_LBSKD)
    assert same(one_by_one.v_LBSKD, v_LBSKD)
    others = 23
    batch = case.rows(
        [9] * others + [5] * count, [*range(700, 700 + others), *positions], [2] * others + [1] * count
    )
    hidden, *_ = case.run(batch, plan)
    assert same(hidden[others:], verified)


@pytest.mark.parametrize("shape", [WIDE, NARROW], ids=str)
@pytest.mark.parametrize("per_processor", [1, 2])
def test_replays_of_a_graph(shape: Shape, per_processor: int) -> None:
    """The barrier and the chunks' counters stand ready for the next launch."""
    case, plan = case_of(shape), persistent(plan_for(shape, per_processor))
    row = case.rows(*ROWS)
    expected, *_ = case.run(row, plan)
    work = new_work(shape, plan, len(row.token), case.slots, case.weights.embedding)
    k_LBSKD, v_LBSKD = case.k_LBSKD.clone(), case.v_LBSKD.clone()
    (launch,) = step_launches(
        shape,
        plan,
        case.weights,
        row,
        cache_of(k_LBSKD, v_LBSKD),
        work,
        len(row.token),
        (0, shape.layers),
        90,
    )
    launch.run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch.run()
    for _ in range(200):
        for name in ("hidden", "scaled", "query", "attended", "inner"):
            getattr(work, name).fill_(float("nan"))
        work.squares.fill_(-1)
        graph.replay()
        assert same(work.hidden, expected)


def test_what_changes_no_bit() -> None:
    case = case_of(WIDE)
    plan = persistent(plan_for(WIDE))
    expected, *_ = case.run(case.rows(*ROWS), plan)
    for change in ({"block_hidden": 32}, {"block_inner": 16}, {"num_stages": 3}):
        got, *_ = case.run(case.rows(*ROWS), replace(plan, **change))  # type: ignore[arg-type]
        assert same(got, expected), change
