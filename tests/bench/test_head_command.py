"""`lit-eff bench head`: its grid, its checks and what it refuses; no GPU."""

from __future__ import annotations

import pytest

from lit_eff.bench import head, head_checks
from lit_eff.bench.checks import run_jobs
from lit_eff.bench.head_exits import PLANS
from lit_eff.bench.head_loss import LossCell, peers


def test_the_grid_is_the_goals() -> None:
    cells = head.all_cells()
    found = {name: [cell.label for cell in cells if cell.section == name] for name in head.SECTIONS}
    assert sum(map(len, found.values())) == len(cells)
    assert found["loss"] == ["1 exit", "3 exits", "12 exits"]
    assert found["exits"] == ["GPT-2 124M"]
    shapes = ["2048 x 2048", "11264 x 2048", "2048 x 5632", "32000 x 2048", "4096 x 4096", "28672 x 4096"]
    shapes += ["576 x 576", "49152 x 576"]
    counts = ["1 row", "8 rows", "16 rows", "32 rows", "64 rows", "128 rows", "640 rows"]
    assert found["linear"] == [f"{shape}, {count}" for shape in shapes for count in counts]
    shapes = ["49152 x 576", "49152 x 2048", "128256 x 2048", "128256 x 4096"]
    assert found["confidence"] == [f"{shape}, {count}" for shape in shapes for count in counts[:3]]
    assert LossCell(1).flops == 6 * 8192 * 2048 * 50304
    assert [peer.name for peer in peers() if peer.ours] == ["ours"]


def test_flop_floors_of_the_training_step() -> None:
    floors = {plan.name: plan.flop_ratio for plan in PLANS}
    assert floors["no exits"] == 1.0
    assert floors["rotational, 1 extra exit"] == pytest.approx(1.27, abs=0.005)
    assert floors["all 12 exits"] == pytest.approx(1 + 11 * 0.272, abs=0.02)
    assert {exits[0] for exits in PLANS[1].steps} == set(range(11))


def test_a_wrong_gradient_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check would see a smoothing that the kernel left out."""
    check = head_checks.LossCheck("plain", "float32", "cpu", exits=1, tokens=9, vocabulary=40)
    assert check.run().faults == ()
    right = dict(head_checks.FORMS)
    monkeypatch.setitem(head_checks.FORMS, "plain", {"label_smoothing": 0.3})
    smoothed = check.run()
    assert smoothed.faults == ()

    from lit_eff.kernels import cross_entropy

    honest = cross_entropy.multi_exit_cross_entropy
    monkeypatch.setattr(
        cross_entropy,
        "multi_exit_cross_entropy",
        lambda *arguments, label_smoothing, **more: honest(*arguments, **more),
    )
    faults = check.run().faults
    assert [fault.split(" is off by")[0] for fault in faults] == ["loss", "hidden 0", "matrix"]
    assert right["plain"] == {}


def test_checks_run_in_processes_of_their_own() -> None:
    """One case in the interpreter, and the default kernels' budget on Hopper, compiled."""
    found = [
        head_checks.LossCheck("hot distillation", "float16", "cpu", exits=2, tokens=20, vocabulary=200),
        head_checks.LossBudget(90, "bfloat16", 50_257),
    ]
    assert [each.faults for each in run_jobs(found, 1)] == [(), ()]


@pytest.mark.slow
def test_every_budget_holds() -> None:
    found = head_checks.checks_here(["budget"])
    assert len(found) == 16
    assert [each.faults for each in run_jobs(found, 1)] == [()] * 16
