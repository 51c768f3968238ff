"""On a GPU: kernels joined to modules and phases, operators' costs by our I/O models, memory as allocated."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, schedule

from lit_eff.kernels.operator_costs import operator_costs
from lit_eff.models.config import ExitConfig, ModelConfig
from lit_eff.models.transformer import Transformer
from lit_eff.profiling.memory import ALLOCATOR, CATEGORIES, MemoryTimeline
from lit_eff.profiling.modules import ModuleScopes
from lit_eff.profiling.operators import CountOperators, Key
from lit_eff.profiling.scope import Scope
from lit_eff.profiling.torch_trace import TorchTrace, read_torch_trace

pytestmark = pytest.mark.gpu

BATCH, LENGTH = 4, 512
CONFIG = ModelConfig(1000, 3, 256, 4, context=LENGTH, exits=ExitConfig((1,), "norm"))


class Training:
    """A model in bfloat16, and a step of it."""

    def __init__(self, checkpoint_blocks: bool = False) -> None:
        torch.manual_seed(0)
        self.model = Transformer(CONFIG).cuda().bfloat16()
        self.model.checkpoint_blocks = checkpoint_blocks
        self.tokens_BT = torch.randint(0, 1000, (BATCH, LENGTH), device="cuda")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.step()

    def loss(self) -> Tensor:
        hidden_BTC = self.model(self.tokens_BT)[-1]
        return self.model.logits(hidden_BTC, 1).float().logsumexp(-1).mean()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


@pytest.fixture(scope="module")
def training() -> Training:
    return Training()


@pytest.fixture(scope="module")
def trace(training: Training, tmp_path_factory: pytest.TempPathFactory) -> TorchTrace:
    path: Path = tmp_path_factory.mktemp("trace") / "x.pt.trace.json.gz"
    with (
        ModuleScopes(training.model, ranges=True),
        profile(
            activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA],
            schedule=schedule(wait=0, warmup=1, active=2, repeat=1),
            on_trace_ready=lambda each: each.export_chrome_trace(str(path)),
        ) as profiler,
    ):
        for _ in range(3):
            training.step()
            profiler.step()
    return read_torch_trace(path)


def test_every_kernel_has_a_step_and_a_place(trace: TorchTrace) -> None:
    assert trace.on_device
    assert len(trace.steps) == 2
    inside = [work for work in trace.work if work.step is not None]
    assert {work.step for work in inside} == {0, 1}
    assert all(work.track.startswith("GPU 0/stream") for work in inside)
    assert {work.scope.phase for work in inside} == {"forward", "backward", "optimizer"}
    first, second = (Counter(work.scope for work in inside if work.step == step) for step in (0, 1))
    assert first == second
    for block in range(3):
        place = f"blocks.{block}"
        assert first[Scope(f"{place}.mlp.up", "forward")] >= 1
        assert first[Scope(f"{place}.mlp.up", "backward")] >= 2  # dX and dW
        for phase in ("forward", "backward"):
            names = [work.name.lower() for work in inside if work.scope == (f"{place}.attention", phase)]
            assert any("attention" in name or "flash" in name or "fmha" in name for name in names), names
    update = [work.name for work in inside if work.scope.phase == "optimizer"]
    assert any("adam" in name.lower() or "multi_tensor" in name for name in update)


def test_attention_costs_what_its_model_says(training: Training) -> None:
    with CountOperators(training.model, operator_costs()) as counter:
        training.step()
    totals = counter.totals
    if training.model.attention_backend.name != "triton":
        pytest.skip(f"attention runs as {training.model.attention_backend.name} here")
    forward = totals[Key("blocks.0.attention", "forward", "lit_eff::attention_forward")]
    backward = totals[Key("blocks.0.attention", "backward", "lit_eff::attention_backward")]
    pairs = BATCH * 4 * LENGTH * (LENGTH + 1) // 2
    assert forward.flops == 4 * 64 * pairs
    assert backward.flops == 10 * 64 * pairs
    least = 2 * BATCH * LENGTH * 256  # one of q, k, v and the output
    assert forward.read_bytes >= 3 * least
    assert forward.written_bytes == least + 4 * BATCH * 4 * LENGTH


def test_living_tensors_are_what_the_allocator_holds(training: Training) -> None:
    memory = MemoryTimeline(training.model, [training.optimizer])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    with memory:
        training.step()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    counted = sum(memory.peak.values())
    # The allocator rounds every block up to 512 bytes, and other tests' tensors may be alive.
    assert counted <= peak <= 1.25 * counted + 64e6
    held = {sample.time: sample.value for sample in memory.samples if sample.counter == ALLOCATOR}
    assert len(held) == len([s for s in memory.samples if s.counter == f"{CATEGORIES[0]}, B"])
    states = sum(2 * p.numel() * p.element_size() for p in training.model.parameters())
    assert memory.bytes["optimizer state"] == pytest.approx(states, rel=1e-3)


def test_recomputation_is_told_from_the_forward_pass(tmp_path: Path) -> None:
    training = Training(checkpoint_blocks=True)
    with CountOperators(training.model) as counter:
        training.step()
    phases: dict[str, Any] = {}
    for key, total in counter.totals.items():
        if key.module == "blocks.1.mlp.up" and key.operator == "aten::mm":
            phases[key.phase] = total.flops
    product = 2 * BATCH * LENGTH * 256 * 1024
    assert phases == {"forward": product, "recompute": product, "backward": 2 * product}
