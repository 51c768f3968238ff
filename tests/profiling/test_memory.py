"""Living bytes by category over a training step, against hand arithmetic and the allocator's own count."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from lit_eff.profiling.memory import CATEGORIES, MemoryTimeline

ROWS, WIDTH = 64, 128
WEIGHT = 4 * WIDTH * WIDTH
ACTIVATION = 4 * ROWS * WIDTH


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH, bias=False)
        self.second = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).sigmoid()).square()
        return out


def test_a_step_by_category() -> None:
    net, x = Net(), torch.randn(ROWS, WIDTH)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    memory = MemoryTimeline(net, [optimizer])
    with memory:
        assert memory.bytes == {**dict.fromkeys(CATEGORIES, 0), "parameters": 2 * WEIGHT}
        loss = net(x).sum()
        # Sigmoid's output and the second product's are kept for the backward pass; square's output is gone.
        assert memory.bytes["activations"] == 2 * ACTIVATION + loss.untyped_storage().nbytes()
        assert memory.bytes["other"] == ACTIVATION  # the input
        loss.backward()
        del loss
        optimizer.step()
    gc.collect()
    assert memory.bytes["parameters"] == 2 * WEIGHT
    assert memory.bytes["gradients"] == 2 * WEIGHT
    assert memory.bytes["optimizer state"] == 4 * WEIGHT + 2 * 4  # two moments, and a step a parameter
    assert memory.bytes["activations"] == 0
    del x
    optimizer.zero_grad()
    assert memory.bytes["gradients"] == memory.bytes["other"] == 0


def test_the_curve_and_its_peak() -> None:
    net, x = Net(), torch.randn(ROWS, WIDTH)
    memory = MemoryTimeline(net)
    with memory:
        net(x).sum().backward()
    curves = {name: [s.value for s in memory.samples if s.counter == f"{name}, B"] for name in CATEGORIES}
    assert set(curves["parameters"]) == {2 * WEIGHT}
    assert curves["activations"][0] == 0 < max(curves["activations"])
    assert curves["gradients"][-1] == 2 * WEIGHT
    assert sum(memory.peak.values()) >= max(map(sum, zip(*curves.values(), strict=True)))
    assert memory.peak_scope.phase == "backward"
    table = memory.peak_table()
    assert "backward" in table.caption
    assert [row[0] for row in table.rows] == list(CATEGORIES)
    assert sum(row[2] for row in table.rows) == pytest.approx(1)  # type: ignore[misc]
    times = [sample.time for sample in memory.samples]
    assert times == sorted(times)


def test_the_peak_is_what_the_allocator_saw() -> None:
    """The profiler records every allocation of the process, independently of tensors."""
    net, x = Net(), torch.randn(ROWS, WIDTH)

    def step() -> None:
        net(x).sum().backward()
        net.zero_grad()

    step()
    memory = MemoryTimeline(net)
    with memory:
        step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    level = highest = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            level += event.nbytes()
            highest = max(highest, level)
    assert highest > 3 * ACTIVATION
    grown = sum(memory.peak.values()) - 2 * WEIGHT - ACTIVATION
    assert grown == pytest.approx(highest, abs=256)


def test_a_bound_on_samples_keeps_the_peak() -> None:
    net, x = Net(), torch.randn(ROWS, WIDTH)
    whole, bounded = MemoryTimeline(net), MemoryTimeline(net, most=2)
    for memory in (whole, bounded):
        net.zero_grad()
        with memory:
            net(x).sum().backward()
    assert len(bounded.samples) == 2 * len(CATEGORIES)
    assert len(bounded.samples) + bounded.dropped * len(CATEGORIES) == len(whole.samples)
    assert bounded.peak == whole.peak
