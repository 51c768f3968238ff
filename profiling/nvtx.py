"""NVTX ranges named after training steps and modules, forward and backward: profilers tell whose a kernel is.

Hooks open and close the ranges inside the ``with`` block; outside it there are none, and no cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from lit_eff.profiling.measured import MeasuredKernel
from lit_eff.profiling.report import ReportTable

STEP, BACKWARD = "step ", "backward "


class Owner(NamedTuple):
    """Whose a kernel is. ``step`` and ``module`` are None outside any; the root module is its class."""

    step: int | None
    phase: Literal["forward", "backward"] | None
    module: str | None


def owner(ranges: Sequence[str]) -> Owner:
    """What the names of the open ranges, outermost first, say; the innermost module is the owner."""
    steps = [name for name in ranges if name.startswith(STEP)]
    step = int(steps[-1].removeprefix(STEP)) if steps else None
    modules = [name for name in ranges if not name.startswith(STEP)]
    if not modules:
        return Owner(step, None, None)
    innermost = modules[-1]
    if innermost.startswith(BACKWARD):
        return Owner(step, "backward", innermost.removeprefix(BACKWARD))
    return Owner(step, "forward", innermost)


def owners_table(kernels: Sequence[MeasuredKernel]) -> ReportTable:
    """What ncu measured, summed over the kernels of each step, phase and module, in order of first launch."""
    quantities = ("dram_read_bytes", "dram_written_bytes", "l2_bytes")
    groups: dict[Owner, list[MeasuredKernel]] = {}
    for kernel in kernels:
        groups.setdefault(owner(kernel.ranges), []).append(kernel)
    rows = tuple(
        (
            *each,
            len(own),
            *(
                sum(kernel.values[quantity] for kernel in own)
                if all(quantity in kernel.values for kernel in own)
                else None
                for quantity in quantities
            ),
            "measured: ncu, cold caches",
        )
        for each, own in groups.items()
    )
    return ReportTable(
        "Measured traffic by step, phase and module",
        "Each kernel runs alone and from cold caches, so what one leaves in L2 for the next is read again.",
        ("step", "phase", "module", "kernels", "DRAM read, B", "DRAM written, B", "L2, B", "source"),
        rows,
    )


class ModuleRanges:
    """``with ModuleRanges(model) as ranges:`` opens a range for each module's forward and backward in turn.

    The backward of a module starts when a gradient reaches one of its outputs and ends when all its inputs
    have theirs, or with the backward pass. Modules that share an input end together, so a backward range may
    lie inside another module's: the innermost names the owner.

    Args:
        model: its submodules' ranges have their qualified names.
        push: opens a range; NVTX's own by default.
        pop: closes the range opened last.
    """

    def __init__(
        self, model: nn.Module, push: Callable[[str], Any] | None = None, pop: Callable[[], Any] | None = None
    ) -> None:
        self._model = model
        self._root = type(model).__name__
        self._push = push or torch.cuda.nvtx.range_push
        self._pop = pop or torch.cuda.nvtx.range_pop
        self._open: list[str] = []
        self._handles: list[RemovableHandle] = []
        self._in_backward = False

    def __enter__(self) -> ModuleRanges:
        for name, module in self._model.named_modules():
            name = name or self._root
            self._handles += [
                module.register_forward_pre_hook(self._before(name), with_kwargs=True),
                module.register_forward_hook(self._after(name), with_kwargs=True, always_call=True),
            ]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._end_backward()

    @contextmanager
    def step(self, index: int) -> Iterator[None]:
        """The range of one training step, around all that it runs."""
        name = f"{STEP}{index}"
        self._begin(name)
        try:
            yield
        finally:
            self._end(name)

    def _begin(self, name: str) -> None:
        self._push(name)
        self._open.append(name)

    def _end(self, name: str) -> None:
        """Close the innermost range of this name; those inside it stay open, so they open again."""
        if name not in self._open:
            return
        inside: list[str] = []
        while (last := self._open.pop()) != name:
            self._pop()
            inside.append(last)
        self._pop()
        for each in reversed(inside):
            self._begin(each)

    def _before(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._begin(name)
            inputs = _differentiable((args, kwargs))
            if inputs:
                register_multi_grad_hook(inputs, lambda _: self._end(BACKWARD + name))

        return hook

    def _after(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._end(name)
            outputs = _differentiable(output)
            if outputs:
                register_multi_grad_hook(outputs, lambda _: self._begin_backward(name), mode="any")

        return hook

    def _begin_backward(self, name: str) -> None:
        if not self._handles:  # a graph from inside the block, differentiated after it
            return
        if not self._in_backward:
            self._in_backward = True
            # No module's range ends by itself whose inputs have no gradient: those of token ids, say.
            engine = torch.autograd.Variable._execution_engine
            engine.queue_callback(self._end_backward)
        # A module and its last child have one output, whose gradient tells the child first.
        inside = [each for each in self._open if each.startswith(BACKWARD) and self._within(each, name)]
        for each in inside:
            self._end(each)
        for each in (BACKWARD + name, *inside):
            self._begin(each)

    def _within(self, opened: str, name: str) -> bool:
        """Whether a backward range belongs to a submodule of module ``name``."""
        child = opened.removeprefix(BACKWARD)
        return name == self._root or child.startswith(name + ".")

    def _end_backward(self) -> None:
        for name in [each for each in self._open if each.startswith(BACKWARD)]:
            self._end(name)
        self._in_backward = False


def _differentiable(values: Any) -> list[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, Tensor) and each.requires_grad]
