"""What PyTorch's operators ask of memory and arithmetic units, by module, phase and operator.

The bytes are a model: an operator reads each input once and writes each output once, whatever it does in
between; a view moves nothing; what an operator overwrites in place it reads first, unless it does nothing but
overwrite (``copy_``); of a broadcast input each element is read once; a look-up reads the rows it looks up.
That is the least an operator run by itself can move, and what one whose data outgrow the caches does.

FLOPs are those of PyTorch's own counter (:mod:`torch.utils.flop_counter`): matrix products, convolutions and
attention; a multiply-add counts as two, causal attention in full, other operators nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from lit_eff.profiling.modules import ModuleScopes
from lit_eff.profiling.scope import Phase

_OVERWRITE = {"copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_"}
_OVERWRITE |= {"_foreach_copy_", "_foreach_zero_"}
_ALLOCATE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_FILL = {
    "zeros_like",
    "ones_like",
    "full_like",
    "rand_like",
    "randn_like",
    "new_zeros",
    "new_ones",
    "new_full",
}
_LOOK_UP = {"embedding", "index", "index_select", "gather", "take"}  # of their first argument
_SCATTER = {"index_put", "index_put_", "index_copy_", "index_add_", "scatter_", "scatter_add_"}  # into it


ONCE = "inputs once, outputs once"


class Cost(NamedTuple):
    """Bytes requested of memory and floating-point operations of one call, and the ``model`` they are by."""

    read_bytes: int
    written_bytes: int
    flops: int
    model: str


CostModel = Callable[[Sequence[Any], Mapping[str, Any], Any], Cost]
"""A cost from an operator's arguments, keyword arguments and result."""


class Key(NamedTuple):
    """Where an operator ran, and which: ``aten::mm``."""

    module: str
    phase: Phase
    operator: str


@dataclass
class Total:
    """Of all calls of one operator at one place; ``model`` tells how their cost was found."""

    model: str
    calls: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    flops: int = 0

    def add(self, other: Total) -> None:
        self.calls += other.calls
        self.read_bytes += other.read_bytes
        self.written_bytes += other.written_bytes
        self.flops += other.flops

    @property
    def moved_bytes(self) -> int:
        return self.read_bytes + self.written_bytes


class CountOperators(TorchDispatchMode):
    """Models every operator that runs while entered; may be entered again, and then adds up.

    What it keeps grows with the places in the model, not with the steps. Compiled functions run uncompiled
    while it is entered, so their operators are those before fusion.

    Args:
        root: module to attribute to.
        models: costs of operators (``lit_eff::attention_forward``) that know better than inputs once,
            outputs once.

    Attributes:
        totals: by place and operator; views and allocations, which cost nothing, are left out.
    """

    def __init__(self, root: nn.Module, models: Mapping[str, CostModel] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._scopes = ModuleScopes(root)
        self._models = dict(models or {})
        self.totals: dict[Key, Total] = {}

    def __enter__(self) -> CountOperators:
        self._scopes.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._scopes.__exit__(*exception)

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if any(is_traceable_wrapper_subclass_type(kind) for kind in types):
            return NotImplemented  # a DTensor, say, which then runs operators on what it holds
        scope = self._scopes.scope()
        out = function(*args, **(kwargs or {}))
        if isinstance(function, OpOverload) and not function.is_view:
            name = function._schema.name
            own = self._models.get(name)
            read, written, flops, model = (own or default_cost(function))(args, kwargs or {}, out)
            if read or written or flops:
                total = self.totals.setdefault(Key(*scope, name), Total(model))
                total.add(Total(model, 1, read, written, flops))
        return out


def default_cost(function: OpOverload) -> CostModel:
    """The cost model of an operator without one of its own, from its schema."""
    return lambda args, kwargs, out: Cost(
        *_bytes_moved(function, args, kwargs, out), _flops(function, args, kwargs, out), ONCE
    )


def bytes_once(inputs: Any, outputs: Any) -> tuple[int, int]:
    """Bytes of all tensors among an operator's inputs, and of those among its outputs, each once."""
    read, written = (_distinct(list(_tensors(values))) for values in (inputs, outputs))
    return sum(map(tensor_bytes, read)), sum(map(tensor_bytes, written))


def _bytes_moved(
    function: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any
) -> tuple[int, int]:
    name = function._schema.name.partition("::")[2]
    if name in _ALLOCATE:
        return 0, 0
    inputs = list(_tensors(args)) + list(_tensors(kwargs))
    results = list(_tensors(out))
    if name in _FILL:
        return 0, sum(map(tensor_bytes, results))
    if name in _LOOK_UP:
        return sum(map(tensor_bytes, _distinct(inputs[1:] + results))), sum(map(tensor_bytes, results))
    if name in _SCATTER:
        values = tensor_bytes(inputs[-1])
        whole = 0 if name.endswith("_") else tensor_bytes(inputs[0])
        return sum(map(tensor_bytes, inputs[1:])) + whole, max(values, whole)
    mutated, read = [], []
    for argument, value in _bound(function, args, kwargs):
        tensors = list(_tensors(value))
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if argument.name == "grads" and kwargs.get("grad_scale") is None:
            writes = False  # fused optimizers unscale gradients in place, if there is a scale
        if writes:
            mutated += tensors
        if not writes or not (argument.is_out or name in _OVERWRITE):
            read += tensors
    if not mutated and not function._schema.returns:
        return 0, 0
    there = {_storage(tensor) for tensor in inputs}
    made = [tensor for tensor in results if _storage(tensor) not in there]
    if not made and not mutated and results:  # all are views of inputs
        return 0, 0
    return sum(map(tensor_bytes, _distinct(read))), sum(map(tensor_bytes, _distinct(mutated + made)))


def _flops(function: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    packet = function._overloadpacket
    if packet not in flop_registry:  # PyTorch registers addmm, and addmm_ computes the same
        namespace, _, name = function._schema.name.partition("::")
        packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), packet)
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        q, k, v = (tensor.shape for tensor in args[:3])
        return int(sdpa_flop_count(q, k, v))  # type: ignore[no-untyped-call]
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        grad, q, k, v = (tensor.shape for tensor in args[:4])
        return int(sdpa_backward_flop_count(grad, q, k, v))  # type: ignore[no-untyped-call]
    return 0


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's distinct elements: broadcast dimensions count once."""
    if tensor.numel() == 0:
        return 0
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    distinct = prod(size for size, stride in sizes if stride != 0) * tensor.element_size()
    return min(distinct, tensor.untyped_storage().nbytes())  # windows may overlap


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _bound(
    function: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[tuple[torch.Argument, Any]]:
    for index, argument in enumerate(function._schema.arguments):
        if index < len(args):
            yield argument, args[index]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]


def _distinct(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each memory once: ``x * x`` reads x once."""
    places = {(_storage(each), each.storage_offset(), each.shape, each.stride()): each for each in tensors}
    return list(places.values())


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
