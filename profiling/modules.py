"""Which module works on what: module calls kept as a stack, and joined to the backward pass by autograd.

Autograd numbers every node it makes. An operator that runs within a module's call in the forward pass marks
the node just made as that module's; in the backward pass it belongs to the module of the node being
evaluated. So operators outside all modules (losses), and modules whose inputs need no gradient, are told
apart too, which hooks on gradients cannot do.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import record_function

from lit_eff.profiling.scope import RANGE, Scope

MOST_NODES = 1_000_000  # kept; a step makes some thousands


class _Removable(Protocol):
    def remove(self) -> None: ...


class ModuleScopes:
    """Follows the calls of ``root``'s modules while entered; hooks nothing before and after.

    Submodules of one compiled in place are left alone: hooks would be compiled in. Such a module's own calls
    are followed around the compiled function.

    Args:
        root: module whose submodules are followed, by their paths in it.
        ranges: open a :class:`torch.profiler.record_function` named :data:`RANGE` + path around each call.
    """

    def __init__(self, root: nn.Module, *, ranges: bool = False) -> None:
        self._root, self._ranges = root, ranges
        self._local = threading.local()  # on CUDA the backward pass, and recomputation in it, has own threads
        self._handles: list[_Removable] = []
        self._compiled: list[tuple[nn.Module, Any]] = []
        self._module_of_node: dict[int, str] = {}
        self._module_of_parameter: dict[int, str] = {}
        self._updating: Literal["no", "closure", "yes"] = "no"

    def __enter__(self) -> ModuleScopes:
        for path, module in _outside_compiled(self._root):
            compiled = module._compiled_call_impl is not None
            for parameter in module.parameters(recurse=compiled):
                self._module_of_parameter[id(parameter)] = path
            if compiled:
                self._follow_compiled(path, module)
                continue
            leave = partial(self._leave, path)
            self._handles.append(module.register_forward_pre_hook(partial(self._enter, path), prepend=True))
            self._handles.append(module.register_forward_hook(leave, always_call=True))
        self._handles.append(register_optimizer_step_pre_hook(self._update_begins))
        self._handles.append(register_optimizer_step_post_hook(self._update_ends))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        for module, call in self._compiled:
            module._compiled_call_impl = call
        self._handles.clear()
        self._compiled.clear()
        self._module_of_node.clear()
        self._module_of_parameter.clear()

    def scope(self) -> Scope:
        """Of the operator being dispatched on this thread; to be asked once for each, before it runs."""
        stack = self._stack()
        if torch._C._current_graph_task_id() != -1:
            if self._updating == "closure":
                self._updating = "yes"  # what the optimizer's step does after its closure is the update
            if stack:
                return Scope(stack[-1][0], "recompute")
            return Scope(self._module_under_evaluation(), "backward")
        module = stack[-1][0] if stack else ""
        if not stack and self._updating == "yes":
            return Scope(module, "optimizer")
        if len(self._module_of_node) >= MOST_NODES:
            self._module_of_node.clear()
        # The first operator after a node was made is the one that it is of.
        self._module_of_node.setdefault(torch._C._autograd._get_sequence_nr() - 1, module)
        return Scope(module, "forward")

    def _module_under_evaluation(self) -> str:
        node: Any = torch._C._current_autograd_node()
        if node is None:
            return ""
        if hasattr(node, "variable"):  # of a parameter whose gradient is added up
            return self._module_of_parameter.get(id(node.variable), "")
        return self._module_of_node.get(node._sequence_nr(), "")

    def _stack(self) -> list[tuple[str, record_function | None]]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[tuple[str, record_function | None]] = self._local.stack
        return stack

    def _enter(self, path: str, *_: Any) -> None:
        opened = None
        if self._ranges:
            opened = record_function(RANGE + path)
            opened.__enter__()  # type: ignore[no-untyped-call]
        self._stack().append((path, opened))

    def _leave(self, path: str, *_: Any) -> None:
        stack = self._stack()
        if path not in (each for each, _ in stack):  # entered before this was
            return
        while True:  # a call that an exception ended may have left calls inside it open
            left, opened = stack.pop()
            if opened is not None:
                opened.__exit__(None, None, None)
            if left == path:
                return

    def _follow_compiled(self, path: str, module: nn.Module) -> None:
        call: Any = module._compiled_call_impl

        @torch.compiler.disable(recursive=False)  # type: ignore[no-untyped-call,untyped-decorator]
        def followed(*args: Any, **kwargs: Any) -> Any:
            with self._within(path):
                return call(*args, **kwargs)

        self._compiled.append((module, call))
        module._compiled_call_impl = followed

    @contextmanager
    def _within(self, path: str) -> Iterator[None]:
        self._enter(path)
        try:
            yield
        finally:
            self._leave(path)

    def _update_begins(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        self._updating = "yes" if closure is None else "closure"

    def _update_ends(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._updating = "no"


def _outside_compiled(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules with their paths, those inside a compiled one left out, each once."""
    inside: set[int] = set()
    for path, module in root.named_modules():
        if id(module) in inside:
            continue
        if module._compiled_call_impl is not None:
            inside.update(id(each) for each in module.modules() if each is not module)
        yield path or type(module).__name__, module
