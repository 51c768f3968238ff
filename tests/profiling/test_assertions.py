"""The bound on HBM bytes that other projects' tests use, on kernels whose bytes are known."""

from __future__ import annotations

import pytest
import torch
import triton

from lit_eff.errors import UserError
from lit_eff.profiling.assertions import assert_hbm_bytes
from lit_eff.profiling.launch import Launch
from tests.profiling import toy_kernels

pytestmark = pytest.mark.skipif(
    isinstance(toy_kernels.add_kernel, triton.JITFunction), reason="needs TRITON_INTERPRET=1 from the start"
)


def addition() -> Launch:
    """100 float32 from each of two tensors to a third: 800 bytes read, 400 written."""
    x, y, total = (torch.ones(100) for _ in range(3))
    return Launch(
        toy_kernels.add_kernel, (2,), {"p_x": x, "p_y": y, "p_sum": total, "count": 100, "BLOCK": 64}
    )


def histogram() -> Launch:
    """64 bytes read, 64 and 4 changed by atomics."""
    x, counts, lock = (torch.zeros(16, dtype=torch.int32) for _ in range(3))
    return Launch(
        toy_kernels.histogram_kernel, (1,), {"p_x": x, "p_counts": counts, "p_lock": lock, "BLOCK": 16}
    )


def test_a_bound_that_holds_returns_the_counts() -> None:
    (count,) = assert_hbm_bytes(addition(), at_most=1200)
    assert (count.read_bytes, count.written_bytes) == (800, 400)
    first, second = assert_hbm_bytes([addition(), histogram()], at_most=1200 + 132)
    assert (first.kernel, second.kernel) == ("add_kernel", "histogram_kernel")
    assert second.atomic_bytes == 68


def test_one_byte_over_fails_and_says_by_which_lines() -> None:
    launches = [addition(), histogram()]

    def run() -> None:
        for launch in launches:
            launch.run()

    with pytest.raises(AssertionError) as failure:
        assert_hbm_bytes(run, at_most=1200 + 131)
    head, columns, *rows = str(failure.value).splitlines()
    assert head == (
        "add_kernel, histogram_kernel: 1,332 bytes requested of HBM, 1 more than the 1,331 allowed; "
        "by source line:"
    )
    assert columns.split() == ["bytes", "share", "kind", "tensor", "line", "source"]
    told = [row.split(maxsplit=5) for row in rows]
    assert [row[:4] for row in told] == [
        ["400", "30%", "stores", "sum"],
        ["400", "30%", "loads", "x"],
        ["400", "30%", "loads", "y"],
        ["64", "5%", "atomics", "counts"],
        ["64", "5%", "loads", "x"],
        ["4", "0%", "atomics", "lock"],
    ]
    assert all(row[4].startswith("toy_kernels.py:") for row in told)
    assert told[-1][5] == "tl.atomic_cas(p_lock, 0, 1)"


def test_launches_of_one_line_are_added() -> None:
    with pytest.raises(AssertionError, match=r"^add_kernel: 2,400 bytes requested") as failure:
        assert_hbm_bytes([addition(), addition()], at_most=0)
    assert [row.split()[0] for row in str(failure.value).splitlines()[2:]] == ["800"] * 3


def test_without_the_interpreter_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(UserError, match=r"TRITON_INTERPRET is not set.*expected 1.*conftest"):
        assert_hbm_bytes(addition(), at_most=0)


def test_nothing_launched_is_no_proof() -> None:
    with pytest.raises(UserError, match="nothing was counted"):
        assert_hbm_bytes(lambda: None, at_most=10**9)
