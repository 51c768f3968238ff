"""`lit-eff bench decode_step` on a GPU: a cell of a small model, timed for real."""

from __future__ import annotations

import gc

import pytest
import torch

from lit_eff.bench import step_cells
from lit_eff.bench.measure import CudaStopwatch, Stopwatch, interleaved
from lit_eff.bench.step_cells import Rows, Setting, StepCell, captured
from lit_eff.models.config import ModelConfig

pytestmark = pytest.mark.gpu
SMALL = ModelConfig(vocab_size=1024, layers=2, model_dim=256, heads=4, kv_heads=2, mlp_dim=512, context=512)


@pytest.mark.parametrize("rows", [Rows(1), Rows(8, verified=True)])
def test_a_cell(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(step_cells.MODELS, "small", SMALL)
    found = StepCell("small", rows).run(CudaStopwatch(), 3)
    assert not any(each.wrong for each in found)
    rates = {(each.section, each.contender): each.rate for each in found}
    for name in ("ours, persistent", "ours, launches", "compiled, CUDA graph", "eager", "eager, CUDA graph"):
        assert rates["tokens", name], [each.unavailable for each in found if each.contender == name]
    assert rates["launches", "ours, persistent"] == 3
    assert rates["launches", "ours, launches"] == 2 + 5 * SMALL.layers + 2
    assert rates["phases", "qkv"]


@torch.inference_mode()
def test_a_sample_owns_what_its_graph_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else is allocated before the replays takes none of a contender's memory."""
    monkeypatch.setitem(step_cells.MODELS, "small", SMALL)
    taken: list[torch.Tensor] = []

    def after_others(functions, rounds: int, stopwatch: Stopwatch):  # type: ignore[no-untyped-def]
        gc.collect()
        taken.extend(torch.full((size,), -1, device="cuda") for size in (1, 64, 4096) for _ in range(2000))
        return interleaved(functions, rounds, stopwatch)

    monkeypatch.setattr(step_cells, "interleaved", after_others)
    setting = Setting(SMALL, Rows(1))
    contender = setting.contenders()["ours, persistent"]()
    captured(contender).replay()
    expected_1C = contender.hidden().clone()
    found = StepCell("small", Rows(1)).run(CudaStopwatch(), 3)
    assert not any(each.unavailable for each in found)
    assert all(bool((each == -1).all()) for each in taken)
    captured(contender).replay()
    assert torch.equal(contender.hidden(), expected_1C)
