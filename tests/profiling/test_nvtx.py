"""Every operation of a training step runs inside the range of the module that it belongs to."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_eff.profiling.measured import MeasuredKernel, measure_command
from lit_eff.profiling.nvtx import ModuleRanges, Owner, owner, owners_table
from lit_eff.profiling.unavailable import UnavailableError


class Branches(nn.Module):
    """Two products that share their input, a residual, and an embedding, which passes no gradient on."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.left, self.right = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
        self.inner = nn.Sequential(nn.Linear(5, 11, bias=False), nn.ReLU(), nn.Linear(11, 5, bias=False))

    def forward(self, tokens_N: Tensor) -> Tensor:
        x_NC = self.embedding(tokens_N)
        x_NC = x_NC + self.left(x_NC) * self.right(x_NC)
        return x_NC + self.inner(x_NC)


class Recorder(TorchDispatchMode):
    """Stands in for NVTX and ncu: the stack of ranges at each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.seen: list[tuple[str, tuple[str, ...]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append((function.__name__.split(".")[0], tuple(self.stack)))
        return function(*args, **(kwargs or {}))


def train(model: nn.Module, recorder: Recorder, steps: int) -> ModuleRanges:
    with ModuleRanges(model, recorder.stack.append, recorder.stack.pop) as ranges, recorder:
        for index in range(steps):
            with ranges.step(index):
                model(torch.tensor([1, 2, 3])).sum().backward()
                model.zero_grad()
    return ranges


def owners(recorder: Recorder, operation: str, step: int = 0) -> list[Owner]:
    found = [owner(stack) for name, stack in recorder.seen if name == operation]
    return [each for each in found if each.step == step]


def test_products_belong_to_their_module_and_phase() -> None:
    recorder = Recorder()
    train(Branches(), recorder, steps=2)
    products = ["left", "right", "inner.0", "inner.2"]
    for step in range(2):
        found = owners(recorder, "mm", step)
        assert [each.module for each in found if each.phase == "forward"] == products
        # Of the input and of the weight, each.
        backward = sorted(each.module or "" for each in found if each.phase == "backward")
        assert backward == sorted(2 * products)


def test_the_embeddings_backward_is_its_own_and_ends_with_the_pass() -> None:
    recorder = Recorder()
    train(Branches(), recorder, steps=1)
    assert owners(recorder, "embedding_dense_backward") == [Owner(0, "backward", "embedding")]
    assert recorder.stack == []


def test_what_no_module_does_is_the_root_modules_or_the_steps() -> None:
    recorder = Recorder()
    train(Branches(), recorder, steps=1)
    assert Owner(0, "forward", "Branches") in owners(recorder, "mul")
    assert owners(recorder, "sum")[0] == Owner(0, None, None)


def test_outside_the_block_nothing_is_hooked() -> None:
    model, recorder = Branches(), Recorder()
    with ModuleRanges(model, recorder.stack.append, recorder.stack.pop):
        loss = model(torch.tensor([1])).sum()
    with recorder:
        loss.backward()
        model(torch.tensor([1])).sum().backward()
    assert recorder.seen
    assert {stack for _, stack in recorder.seen} == {()}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_failing_forward_closes_its_ranges() -> None:
    model, recorder = Branches(), Recorder()
    with ModuleRanges(model, recorder.stack.append, recorder.stack.pop):
        try:
            model(torch.tensor([99]))
        except IndexError:
            assert recorder.stack == []
        else:
            raise AssertionError("an embedding of 7 tokens took token 99")


def test_owner_of_nested_backward_ranges_is_the_innermost() -> None:
    ranges = ("step 12", "backward blocks.1", "backward blocks.1.mlp")
    assert owner(ranges) == Owner(12, "backward", "blocks.1.mlp")
    assert owner(()) == Owner(None, None, None)


def test_measured_kernels_are_summed_by_owner() -> None:
    def kernel(*ranges: str, **values: int) -> MeasuredKernel:
        return MeasuredKernel("gemm", ranges, values)

    table = owners_table(
        [
            kernel("step 0", "mlp", dram_read_bytes=5, dram_written_bytes=1, l2_bytes=9),
            kernel("step 0", "backward mlp", dram_read_bytes=7, dram_written_bytes=1, l2_bytes=9),
            kernel("step 0", "mlp", dram_read_bytes=20, dram_written_bytes=2, l2_bytes=9),
            kernel("step 0", dram_read_bytes=3, dram_written_bytes=4),
        ]
    )
    assert [row[:-1] for row in table.rows] == [
        (0, "forward", "mlp", 2, 25, 3, 18),
        (0, "backward", "mlp", 1, 7, 1, 9),
        (0, None, None, 1, 3, 4, None),
    ]


PROGRAM = """
import torch
from torch import nn
from lit_eff.profiling.measured import MeasuredKernel, measure_command
from lit_eff.profiling.nvtx import ModuleRanges
model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256)).cuda()
x = torch.randn(1024, 256, device="cuda")
with ModuleRanges(model) as ranges:
    for index in range(3):
        with ranges.step(index):
            model(x).sum().backward()
torch.cuda.synchronize()
"""


@pytest.mark.gpu
def test_ncu_attributes_kernels_to_step_module_and_phase() -> None:
    try:
        kernels = measure_command(
            [sys.executable, "-c", PROGRAM], metrics=["dram_read_bytes"], nvtx_include=["step 1/", "step 2/"]
        )
    except UnavailableError as refusal:
        pytest.skip(str(refusal))
    found = {owner(kernel.ranges) for kernel in kernels}
    assert {each.step for each in found} == {1, 2}
    for step in (1, 2):
        for module in ("0", "1", "2"):
            assert Owner(step, "forward", module) in found
            assert Owner(step, "backward", module) in found
    assert all(kernel.values["dram_read_bytes"] >= 0 for kernel in kernels)
