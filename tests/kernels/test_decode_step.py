"""The decode step in the interpreter, launch by launch: precision, bits of rows, layer ranges, positions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.kernels.step_cases import SMALL, SMALL_PLAN, StepCase

pytestmark = pytest.mark.usefixtures("interpreter")

# A first token, chunks that are full or hold one slot, several chunks; two rows of one sequence.
ROWS = ([3, 0, 49, 7], [0, 16, 60, 61], [0, 1, 2, 2])


def worst(got: Tensor, true: Tensor) -> float:
    return float((got.double() - true).abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape", [SMALL, replace(SMALL, channels=80, heads=3, kv_heads=1, head_dim=32)], ids=str
)
def test_as_good_as_torch(shape: object, dtype: torch.dtype) -> None:
    case = StepCase(shape, dtype=dtype)  # type: ignore[arg-type]
    row = case.rows(*ROWS)
    true, plain = case.reference(row, torch.float64), case.reference(row)
    for ours, theirs, exact in zip(case.run(row, SMALL_PLAN), plain, true, strict=True):
        small = (2e-6 if dtype == torch.float32 else 2e-3) * exact.abs().max()
        assert ours.isfinite().all()
        assert worst(ours, exact) <= 2 * worst(theirs, exact) + small
    place = row.sequence.long() * case.slots + row.position
    assert torch.equal(row.history.flatten()[place], row.token)
    assert (row.history == -1).sum() == row.history.numel() - len(row.token)


@pytest.mark.parametrize("scale", [1e-4, 1e5, 1e9])
def test_sums_of_squares_in_fixed_point(scale: float) -> None:
    """Small and large hidden states are as precise as any; beyond the range nothing looks right."""
    case = StepCase()
    case.weights.embedding.mul_(scale)
    row = case.rows(*ROWS)
    ours, *_ = case.run(row, SMALL_PLAN)
    if scale == 1e9:
        assert ours.isnan().all()
        return
    (plain, *_), (exact, *_) = case.reference(row), case.reference(row, torch.float64)
    assert worst(ours, exact) <= 2 * worst(plain, exact) + 2e-6 * exact.abs().max()


def test_rows_alone_and_in_company(row_exact_interpreter: None) -> None:
    """Rows that are decoded one by one, verified together, and batched yield one set of bits."""
    case = StepCase()
    tokens, first = [5, 6, 7], 15
    verified, k_LBSKD, v_LBSKD = case.run(case.rows(tokens, [15, 16, 17], [1, 1, 1]), SMALL_PLAN)
    one_by_one = StepCase()
    for index, token in enumerate(tokens):
        row = one_by_one.rows([token], [first + index], [1])
        hidden, one_by_one.k_LBSKD, one_by_one.v_LBSKD = one_by_one.run(row, SMALL_PLAN)
        assert torch.equal(hidden[0], verified[index])
    assert torch.equal(one_by_one.k_LBSKD, k_LBSKD)
    assert torch.equal(one_by_one.v_LBSKD, v_LBSKD)
    batch = case.rows([9] * 17 + tokens, [40] + [2] * 16 + [15, 16, 17], [2] + [0] * 16 + [1] * 3)
    hidden, *_ = case.run(batch, SMALL_PLAN)
    assert torch.equal(hidden[17:], verified)


def test_layer_ranges_and_positions() -> None:
    case = StepCase()
    row = case.rows(*ROWS)
    whole, k_LBSKD, v_LBSKD = case.run(row, SMALL_PLAN, advance=1)
    assert row.position.tolist() == [position + 1 for position in ROWS[1]]
    row = case.rows(*ROWS)
    parts = case.run(row, SMALL_PLAN, spans=((0, 1), (1, 2)))
    assert row.position.tolist() == ROWS[1]
    for ours, expected in zip(parts, (whole, k_LBSKD, v_LBSKD), strict=True):
        assert torch.equal(ours, expected)


def test_what_changes_no_bit(row_exact_interpreter: None) -> None:
    case = StepCase()
    expected, *_ = case.run(case.rows(*ROWS), SMALL_PLAN)
    for change in ({"block_qkv": 32}, {"block_inner": 16}, {"num_stages": 1}):
        got, *_ = case.run(case.rows(*ROWS), replace(SMALL_PLAN, **change))  # type: ignore[arg-type]
        assert torch.equal(got, expected), change


def test_slots_past_a_row_are_not_read() -> None:
    case = StepCase()
    row = case.rows([4], [20], [1])
    expected, *_ = case.run(row, SMALL_PLAN)
    case.k_LBSKD[:, :, 21:] = float("nan")
    case.v_LBSKD[:, :, 20:] = float("nan")
    got, *_ = case.run(row, SMALL_PLAN)
    assert torch.equal(got, expected)
