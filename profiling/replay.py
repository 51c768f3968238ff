"""Launches kept for the next call like this one: a call's host side, without working it all out again.

Choosing tiles, making arguments and Triton's own binding cost more host time than a short kernel takes on the
device. All of that follows from what does not change between calls (shapes, strides, dtypes, options), so a
:class:`LaunchCache` keeps the compiled kernels with their arguments and puts in the new tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_eff.profiling.launch import Launch

ALIGNMENT = 16  # bytes; Triton compiles another kernel for pointers that are not multiples of it

APART = 512  # bytes, from one workspace to the next: as far as PyTorch's own allocations

Source = Callable[[Sequence[Any]], Any]  # makes one argument from a call's tensors and addresses
_recording = threading.local()


def workspace(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory for a list of launches, one of which writes it before another reads it.

    Anything else that is made while launches are built, a copy say, hinders their replay.
    """
    tensor = torch.empty(tuple(shape), dtype=dtype, device=device)
    made: list[Tensor] | None = getattr(_recording, "made", None)
    if made is not None:
        made.append(tensor)
    return tensor


class LaunchCache:
    """Lists of launches by the calls that they serve; the oldest goes when there are more than ``size``."""

    def __init__(self, size: int = 512) -> None:
        self.size = size
        self._kept: dict[Hashable, _Replay] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def run(
        self,
        key: Hashable,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor],
        build: Callable[[], list[Launch]],
    ) -> None:
        """Run the launches that ``build`` makes for these tensors, on the current device and stream.

        Launches that use other memory, except for `workspace`, are built anew for every call.

        Args:
            key: everything that ``build`` depends on beside the inputs' shapes, strides and dtypes.
            inputs: what the launches read, the first one on their device.
            outputs: new tensors that they write, of shapes, strides and dtypes that follow from the rest.
            build: makes the launches.
        """
        first = inputs[0]
        assert first is not None
        signature = (key, first.get_device(), _equals(inputs), *[_signature(tensor) for tensor in inputs])
        tensors = [*inputs, *outputs]
        kept = self._kept.get(signature)
        if kept is not None:
            kept.run(tensors, first.device)
            return
        made: list[Tensor] = []
        _recording.made = made
        try:
            launches = [launch for launch in build() if 0 not in launch.grid]
        finally:
            _recording.made = None
        compiled = [launch.run() for launch in launches]
        try:
            replay = _Replay(launches, compiled, [*tensors, *made], len(tensors))
        except _CannotReplayError:
            return
        self._kept[signature] = replay
        if len(self._kept) > self.size:
            del self._kept[next(iter(self._kept))]


def _equals(tensors: Sequence[Tensor | None]) -> Hashable:
    """Which of the tensors are one and the same: kept launches cannot tell which of them an argument was."""
    known = [id(tensor) for tensor in tensors if tensor is not None]
    return None if len(set(known)) == len(known) else tuple(map(known.index, known))


def _signature(tensor: Tensor | None) -> Hashable:
    if tensor is None:
        return None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.data_ptr() % ALIGNMENT


class _CannotReplayError(Exception):
    """The launches use other memory than a call's and workspaces, or run in the interpreter."""


class _Address:
    """What a launch asks of a tensor. Workspaces are parts of one block: a tensor each costs more to make."""

    __slots__ = ("_address",)

    def __init__(self, address: int) -> None:
        self._address = address

    def data_ptr(self) -> int:
        return self._address


class _Replay:
    """Compiled launches whose tensors are holes, filled from a call's tensors and new workspaces."""

    def __init__(
        self,
        launches: Sequence[Launch],
        compiled: Sequence[Any],
        tensors: Sequence[Tensor | None],
        given: int,
    ) -> None:
        """``tensors`` are the call's own, the first ``given`` of them, and then the workspaces."""
        places = {id(tensor): place for place, tensor in enumerate(tensors) if tensor is not None}
        self._offsets, self._bytes = [], 0
        for tensor in tensors[given:]:
            assert tensor is not None
            self._offsets.append(self._bytes)
            self._bytes += -(-tensor.nbytes // APART) * APART
        self._steps: list[tuple[Callable[..., Any], list[Any], list[tuple[int, Source]]]] = []
        for launch, kernel in zip(launches, compiled, strict=True):
            if kernel is None:  # what the interpreter returns
                raise _CannotReplayError
            values: list[Any] = [launch.arguments[name] for name in launch.kernel.arg_names]
            holes = []
            for position, value in enumerate(values):
                source = _source(value, places)
                if source is not None:
                    holes.append((position, source))
                    values[position] = None
            self._steps.append((kernel[(*launch.grid, 1, 1)[:3]], values, holes))

    def run(self, tensors: Sequence[Tensor | None], device: torch.device) -> None:
        """``tensors`` are the call's own; everything runs on the current stream of ``device``."""
        block = torch.empty_strided((self._bytes,), (1,), dtype=torch.uint8, device=device)
        start = block.data_ptr()
        holders = [*tensors, *(_Address(start + offset) for offset in self._offsets)]
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
        for runner, values, holes in self._steps:
            arguments = values.copy()
            for position, source in holes:
                arguments[position] = source(holders)
            runner(*arguments, stream=stream)


def _source(value: Any, places: dict[int, int]) -> Source | None:
    """How to make an argument like ``value`` from other tensors; None for one that stays as it is."""
    if isinstance(value, Tensor):
        place = _place(value, places)
        return lambda tensors: tensors[place]
    if isinstance(base := getattr(value, "base", None), Tensor):  # a TMA descriptor
        place = _place(base, places)
        kind, kept = type(value), {name: part for name, part in vars(value).items() if name != "base"}

        def descriptor(tensors: Sequence[Any]) -> Any:
            made = object.__new__(kind)
            made.__dict__.update(kept, base=tensors[place])
            return made

        return descriptor
    if isinstance(value, tuple):
        sources = [_source(part, places) for part in value]
        if all(source is None for source in sources):
            return None
        parts = [part if source is None else None for part, source in zip(value, sources, strict=True)]
        make = getattr(type(value), "_make", tuple)
        return lambda tensors: make(
            part if source is None else source(tensors) for part, source in zip(parts, sources, strict=True)
        )
    return None


def _place(tensor: Tensor, places: dict[int, int]) -> int:
    if id(tensor) not in places:
        raise _CannotReplayError
    return places[id(tensor)]
