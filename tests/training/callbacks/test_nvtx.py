"""The callback names every step of a real run, and leaves nothing open or hooked behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_eff.profiling.nvtx import owner
from lit_eff.training.callbacks import NvtxRanges
from tests.training.callbacks.tiny import make_data, make_module, make_trainer


@pytest.fixture
def nvtx(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[tuple[str, ...]]]:
    """The stack of open ranges and what it was after each push, where there is no NVTX."""
    stack: list[str] = []
    stacks: list[tuple[str, ...]] = []

    def push(name: str) -> None:
        stack.append(name)
        stacks.append(tuple(stack))

    monkeypatch.setattr(torch.cuda.nvtx, "range_push", push)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", stack.pop)
    monkeypatch.setattr(torch.cuda.nvtx, "mark", lambda name: None)
    return stack, stacks


def test_steps_and_modules_of_a_run_have_ranges(
    tmp_path: Path, text: Path, nvtx: tuple[list[str], list[tuple[str, ...]]]
) -> None:
    stack, stacks = nvtx
    module = make_module()
    trainer = make_trainer(tmp_path, NvtxRanges(), max_steps=2, accumulate_grad_batches=2)
    trainer.fit(module, datamodule=make_data(text))
    found = {owner(each) for each in stacks}
    assert {each.step for each in found if each.phase == "backward"} == {0, 1}
    names = {name for name, _ in module.named_modules()}
    assert {each.module for each in found if each.phase == "forward"} <= names | {type(module).__name__}
    attention = next(name for name in names if name.endswith("attention"))
    for phase in ("forward", "backward"):
        assert (1, phase, attention) in found
    assert stack == []
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in module.modules())


def test_without_nvtx_it_says_so(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.version.cuda is not None:
        pytest.skip("this PyTorch has NVTX")
    trainer = make_trainer(tmp_path, NvtxRanges(), max_steps=1)
    trainer.fit(make_module(), datamodule=make_data(text))
    assert "NVTX ranges: none, NVTX functions not installed" in capsys.readouterr().out
