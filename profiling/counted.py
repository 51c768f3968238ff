"""Counts what Triton kernels ask of HBM, lane by lane, while the interpreter runs them: no GPU, no formula.

Every access of the interpreter (plain, block-pointer, descriptor, gather and scatter) passes through two
builder methods, atomics through methods of their own; those are wrapped for the length of a ``with`` block.
What is counted is what the kernel requests: a real device moves at least the distinct 32-byte sectors (the
rest hit in a cache) and at most the requested bytes, rounded up to sectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from lit_eff.errors import UserError

SECTOR_SHIFT = 5  # 32-byte sectors, the unit of every HBM and L2 transfer on NVIDIA GPUs
DEPENDENT_LAUNCH = ("gdc_wait", "gdc_launch_dependents")
ELSEWHERE = "elsewhere"  # accesses outside every tensor argument


@dataclass
class AccessCount:
    """One kind of access (loads, stores or atomics) to one tensor."""

    requested_bytes: int = 0
    masked_lanes: int = 0
    sectors: set[int] | NDArray[np.bool_] = field(default_factory=set, repr=False)

    @property
    def sector_bytes(self) -> int:
        """Bytes of the distinct 32-byte sectors touched: the traffic of a perfect cache."""
        touched = len(self.sectors) if isinstance(self.sectors, set) else int(self.sectors.sum())
        return touched << SECTOR_SHIFT


@dataclass
class TensorCount:
    """All accesses to one tensor argument."""

    loads: AccessCount = field(default_factory=AccessCount)
    stores: AccessCount = field(default_factory=AccessCount)
    atomics: AccessCount = field(default_factory=AccessCount)


@dataclass
class KernelCount:
    """One launch: accesses by tensor argument, without ``p_``; views of one buffer are counted together."""

    kernel: str
    tensors: dict[str, TensorCount] = field(default_factory=dict)

    def _sum(self, kind: str, what: str) -> int:
        return sum(getattr(getattr(count, kind), what) for count in self.tensors.values())

    @property
    def read_bytes(self) -> int:
        return self._sum("loads", "requested_bytes")

    @property
    def written_bytes(self) -> int:
        return self._sum("stores", "requested_bytes")

    @property
    def atomic_bytes(self) -> int:
        return self._sum("atomics", "requested_bytes")

    @property
    def read_sector_bytes(self) -> int:
        return self._sum("loads", "sector_bytes")

    @property
    def written_sector_bytes(self) -> int:
        return self._sum("stores", "sector_bytes")

    @property
    def masked_lanes(self) -> int:
        return sum(self._sum(kind, "masked_lanes") for kind in ("loads", "stores", "atomics"))


class _Counter:
    """Where the running kernel's tensors lie, and the counts so far."""

    def __init__(self) -> None:
        self.launches: list[KernelCount] = []
        self.running: KernelCount | None = None
        self.in_atomic = False
        self._starts: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._ends: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._names: list[str] = []

    def place(self, arguments: dict[str, Any]) -> None:
        """Learn the address range of each tensor argument of the kernel about to run."""
        ranges = sorted(
            (*extent, name.removeprefix("p_"))
            for name, value in _named_leaves(arguments)
            if (extent := _extent(value))
        )
        merged: list[tuple[int, int, str]] = []
        for start, end, name in ranges:
            if merged and start < merged[-1][1]:
                before = merged.pop()
                merged.append((before[0], max(before[1], end), f"{before[2]}+{name}"))
            else:
                merged.append((start, end, name))
        self._starts = np.array([start for start, _, _ in merged], np.uint64)
        self._ends = np.array([end for _, end, _ in merged], np.uint64)
        self._names = [name for _, _, name in merged]

    def access(self, kind: str, pointers: Any, mask: Any) -> None:
        """Count one access: ``pointers`` and ``mask`` are the interpreter's handles, ``mask`` may be None."""
        if self.running is None:
            return
        addresses = np.asarray(pointers.data).reshape(-1).astype(np.uint64)
        lanes = addresses.size
        if mask is not None:
            # A splatted scalar mask comes as integers, which would index instead of select.
            lanes_on = np.asarray(mask.data).astype(bool)
            addresses = addresses[np.broadcast_to(lanes_on, np.shape(pointers.data)).reshape(-1)]
        element = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        off = lanes - addresses.size
        for index, held in self._find(addresses):
            name = ELSEWHERE if index is None else self._names[index]
            count = getattr(self.running.tensors.setdefault(name, TensorCount()), kind)
            count.requested_bytes += held.size * element
            count.masked_lanes += off  # with the first: lanes that are off lie nowhere
            off = 0
            self._touch(count, held >> np.uint64(SECTOR_SHIFT), index)

    def _find(self, addresses: NDArray[np.uint64]) -> list[tuple[int | None, NDArray[np.uint64]]]:
        """Which tensors hold which of ``addresses``: nearly always one holds all."""
        if not addresses.size or not self._names:
            return [(None, addresses)]
        index = int(np.searchsorted(self._starts, addresses.min(), side="right")) - 1
        if index >= 0 and addresses.max() < self._ends[index]:
            return [(index, addresses)]
        places = np.searchsorted(self._starts, addresses, side="right") - 1
        places[(places >= 0) & (addresses >= self._ends[places])] = -1
        return [
            (int(place) if place >= 0 else None, addresses[places == place]) for place in np.unique(places)
        ]

    def _touch(self, count: AccessCount, sectors: NDArray[np.uint64], index: int | None) -> None:
        if index is None:
            assert isinstance(count.sectors, set)
            count.sectors.update(sectors.tolist())
            return
        first = int(self._starts[index]) >> SECTOR_SHIFT
        if isinstance(count.sectors, set):  # a bitmap over the tensor: faster than a set of a million numbers
            count.sectors = np.zeros((int(self._ends[index]) >> SECTOR_SHIFT) - first + 1, bool)
        count.sectors[(sectors - np.uint64(first)).astype(np.int64)] = True


def _named_leaves(arguments: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Arguments by name; a named tuple's fields by theirs, but ``pointer`` by the tuple's."""
    for name, value in arguments.items():
        if hasattr(value, "_fields"):
            fields = {name if field == "pointer" else field: each for field, each in value._asdict().items()}
            yield from _named_leaves(fields)
        else:
            yield name, value


def _extent(value: Any) -> tuple[int, int] | None:
    """First and one-past-last address of a tensor, tensor wrapper or descriptor; None for anything else."""
    tensor = value
    while tensor is not None and not hasattr(tensor, "untyped_storage"):
        tensor = getattr(tensor, "base", None)  # both wrappers and descriptors name their tensor so
    if tensor is None or tensor.numel() == 0:
        return None
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + reach * tensor.element_size()


@contextmanager
def count_traffic() -> Iterator[list[KernelCount]]:
    """Count the HBM requests of every interpreted Triton kernel launched inside the ``with`` block.

    Yields a list that holds one :class:`KernelCount` a launch, in order, as they finish.

    Raises: UserError: on leaving, if no interpreted kernel was launched; ``TRITON_INTERPRET=1`` must be set
        before the kernel's module is imported.
    """
    from triton.language.extra import cuda
    from triton.runtime import interpreter

    counter = _Counter()
    executor, builder = interpreter.GridExecutor, interpreter.InterpreterBuilder
    run, host_arguments = executor.__call__, executor._init_args_hst

    def counted_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        counter.running = KernelCount(self.fn.__name__)
        try:
            result = run(self, *args, **kwargs)
            counter.launches.append(counter.running)
        finally:
            counter.running = None
        return result

    def placed_arguments(self: Any, args: Any, kwargs: Any) -> Any:
        # The interpreter copies device tensors to the host: only here are the addresses it will use known.
        args_host, kwargs_host = host_arguments(self, args, kwargs)
        counter.place({**dict(zip(self.arg_names, args_host, strict=False)), **kwargs_host})
        return args_host, kwargs_host

    patches = [
        mock.patch.object(executor, "__call__", counted_run),
        mock.patch.object(executor, "_init_args_hst", placed_arguments),
    ]
    patches += [
        mock.patch.object(builder, name, wrap(counter, getattr(builder, name)))
        for name, wrap in WRAPPERS.items()
        if hasattr(builder, name)  # Triton 3.9 adds atomic loads, stores and polls
    ]
    # Of dependent launches, which the interpreter lacks: it runs them one after the other anyway.
    patches += [mock.patch.object(cuda, name, mock.Mock(return_value=None)) for name in DEPENDENT_LAUNCH]
    for patch in patches:
        patch.start()
    try:
        yield counter.launches
    finally:
        for patch in reversed(patches):
            patch.stop()
    if not counter.launches:
        raise UserError(
            "no interpreted Triton kernel was launched, so nothing was counted; set TRITON_INTERPRET=1 "
            "before the kernel's module is imported"
        )


Method = Callable[..., Any]


def _wrap_load(counter: _Counter, method: Method) -> Method:
    def create_masked_load(self: Any, pointers: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        counter.access("atomics" if counter.in_atomic else "loads", pointers, mask)
        return method(self, pointers, mask, *args, **kwargs)

    return create_masked_load


def _wrap_store(counter: _Counter, method: Method) -> Method:
    def create_masked_store(
        self: Any, pointers: Any, value: Any, mask: Any, *args: Any, **kwargs: Any
    ) -> Any:
        counter.access("atomics" if counter.in_atomic else "stores", pointers, mask)
        return method(self, pointers, value, mask, *args, **kwargs)

    return create_masked_store


def _wrap_read_modify_write(counter: _Counter, method: Method) -> Method:
    def create_atomic_rmw(
        self: Any, op: Any, pointers: Any, value: Any, mask: Any, *args: Any, **kwargs: Any
    ) -> Any:
        counter.access("atomics", pointers, mask)
        return method(self, op, pointers, value, mask, *args, **kwargs)

    return create_atomic_rmw


def _wrap_compare_and_swap(counter: _Counter, method: Method) -> Method:
    def create_atomic_cas(self: Any, pointers: Any, *args: Any, **kwargs: Any) -> Any:
        counter.access("atomics", pointers, None)
        return method(self, pointers, *args, **kwargs)

    return create_atomic_cas


def _wrap_plain_atomic(counter: _Counter, method: Method) -> Method:
    """Atomic loads, stores and polls go through the plain methods: count those as atomics meanwhile."""

    def create_atomic(self: Any, *args: Any, **kwargs: Any) -> Any:
        counter.in_atomic = True
        try:
            return method(self, *args, **kwargs)
        finally:
            counter.in_atomic = False

    return create_atomic


WRAPPERS: dict[str, Callable[[_Counter, Method], Method]] = {
    "create_masked_load": _wrap_load,
    "create_masked_store": _wrap_store,
    "create_atomic_rmw": _wrap_read_modify_write,
    "create_atomic_cas": _wrap_compare_and_swap,
    "create_atomic_load": _wrap_plain_atomic,
    "create_atomic_store": _wrap_plain_atomic,
    "create_atomic_poll": _wrap_plain_atomic,
}
