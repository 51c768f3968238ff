"""Allocated memory over time, by what it is for: parameters, gradients, optimizer state, activations, other.

Counted from the tensors themselves: a storage counts from the operator that made it until its last
reference is gone. What kernels allocate for themselves and what the allocator holds back is not in it; on a
GPU the allocator's own figure stands beside it, measured.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from lit_eff.profiling.modules import ModuleScopes
from lit_eff.profiling.report import ReportTable
from lit_eff.profiling.scope import Phase, Scope
from lit_eff.profiling.timeline import Sample

Category = Literal["parameters", "gradients", "optimizer state", "activations", "other"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
ALLOCATOR = "CUDA allocator, B"
_MADE_IN: dict[Phase, Category] = {  # until it is known to be something else
    "forward": "activations",
    "recompute": "activations",
    "backward": "other",
    "optimizer": "other",
}


class MemoryTimeline(TorchDispatchMode):
    """Follows allocations on ``device`` while entered; may be entered again, and then goes on.

    Args:
        root: module whose parameters and calls are meant.
        optimizers: whose state is optimizer state.
        device: of the memory; None for that of the first parameter.
        most: samples kept of each counter. One is taken where the module or phase changes.

    Attributes:
        samples: bytes by category (counters such as ``activations, B``), in seconds of ``time.perf_counter``.
        dropped: changes beyond ``most`` that were not sampled; the peak is found all the same.
        peak: bytes by category when most were allocated, and ``peak_scope``, where.
    """

    def __init__(
        self,
        root: nn.Module,
        optimizers: Sequence[Optimizer] = (),
        *,
        device: torch.device | None = None,
        most: int = 5_000,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._scopes = ModuleScopes(root)
        self._root, self._optimizers, self._most = root, optimizers, most
        first = next(root.parameters(), None)
        self._device = device or (torch.device("cpu") if first is None else first.device)
        self._category: dict[int, Category] = {}  # of each living storage
        self._size: dict[int, int] = {}
        self._storage: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._handles: list[RemovableHandle] = []
        self._last = Scope("", "forward")
        self.bytes = dict.fromkeys(CATEGORIES, 0)
        self.samples: list[Sample] = []
        self.dropped = 0
        self.peak = dict(self.bytes)
        self.peak_scope = self._last

    def __enter__(self) -> MemoryTimeline:
        self._scopes.__enter__()
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._has_gradient)  # type: ignore[no-untyped-call]
            for parameter in self._root.parameters()
            if parameter.requires_grad
        ]
        self._recognise()
        self._sample()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        self._recognise()
        self._sample()
        self._scopes.__exit__(*exception)

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if any(is_traceable_wrapper_subclass_type(kind) for kind in types):
            return NotImplemented  # a DTensor, say, which then runs operators on what it holds
        scope = self._scopes.scope()
        if scope != self._last:
            if scope.phase != self._last.phase:
                self._recognise()
            self._sample()
            self._last = scope
        self._add(tree_leaves((args, kwargs)), "other")
        out = function(*args, **(kwargs or {}))
        self._add(tree_leaves(out), _MADE_IN[scope.phase])
        if sum(self.bytes.values()) > sum(self.peak.values()):
            self.peak, self.peak_scope = dict(self.bytes), scope
        return out

    def peak_table(self) -> ReportTable:
        """What was allocated when most was."""
        whole = sum(self.peak.values()) or 1
        where = f"{self.peak_scope.module or 'outside modules'}, {self.peak_scope.phase}"
        return ReportTable(
            "Memory at its peak",
            f"Living tensors on {self._device}, counted, when most were allocated: in {where}.",
            ("what", "MB (counted)", "share"),
            tuple((name, self.peak[name] / 1e6, self.peak[name] / whole) for name in CATEGORIES),
        )

    def _recognise(self) -> None:
        """Sort out what has become a gradient or optimizer state since."""
        parameters = list(self._root.parameters())
        self._add(parameters, "parameters", known=True)
        self._add(self._root.buffers(), "other")
        gradients = (parameter.grad for parameter in parameters)
        self._add(gradients, "gradients", known=True)
        for optimizer in self._optimizers:
            self._add(tree_leaves(list(optimizer.state.values())), "optimizer state", known=True)

    def _has_gradient(self, parameter: Tensor) -> None:
        self._add([parameter.grad], "gradients", known=True)

    def _add(self, values: Iterable[Any], category: Category, *, known: bool = False) -> None:
        """Count storages not seen before under ``category``; ``known``: those seen before as well."""
        for value in values:
            tensor = _local(value)
            if tensor is None or tensor.device != self._device:
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._size:
                weakref.finalize(storage, self._free, key).atexit = False
                self._storage[key], self._size[key] = weakref.ref(storage), storage.nbytes()
            elif not known:
                continue
            else:
                self.bytes[self._category[key]] -= self._size[key]
            self._category[key] = category
            self.bytes[category] += self._size[key]

    def _free(self, key: int) -> None:
        del self._storage[key]
        self.bytes[self._category.pop(key)] -= self._size.pop(key)

    def _resize(self) -> None:
        """FSDP frees gathered parameters by resizing their storage, which no operator tells."""
        for key, reference in list(self._storage.items()):
            storage = reference()
            if storage is not None and storage.nbytes() != self._size[key]:
                self.bytes[self._category[key]] += storage.nbytes() - self._size[key]
                self._size[key] = storage.nbytes()

    def _sample(self) -> None:
        self._resize()
        if len(self.samples) >= self._most * len(CATEGORIES):
            self.dropped += 1
            return
        now = time.perf_counter()
        self.samples += [Sample(f"{name}, B", now, float(self.bytes[name])) for name in CATEGORIES]
        if self._device.type == "cuda":
            allocated = torch.cuda.memory_allocated(self._device)
            self.samples.append(Sample(ALLOCATOR, now, float(allocated)))


def _local(value: Any) -> Tensor | None:
    """The plain tensor that holds the memory; of a DTensor this rank's part."""
    if not isinstance(value, Tensor):
        return None
    inner = getattr(value, "_local_tensor", value)
    return inner if isinstance(inner, Tensor) else None
