"""Replayed launches get the new call's tensors; what cannot be told is built anew."""

from __future__ import annotations

import weakref
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_eff.profiling.launch import Launch
from lit_eff.profiling.replay import LaunchCache, workspace

Rows = namedtuple("Rows", "tensor stride")


@dataclass
class Tiles:
    """Like Triton's TMA descriptor: a tensor with what the copy engine must know."""

    base: Tensor
    shape: list[int]


class Compiled:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, stream: self.kernel.replayed.append((grid, arguments))


class Kernel:
    """Stands in for a JIT function: notes what it is called with."""

    __name__ = "kernel"
    arg_names = ("rows", "tiles", "scratch", "more", "out", "size", "FLAG")

    def __init__(self, compiles: bool = True) -> None:
        self.built: list[tuple[tuple[int, ...], dict[str, Any]]] = []
        self.replayed: list[tuple[tuple[int, ...], tuple[Any, ...]]] = []
        self.compiles = compiles

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def call(**arguments: Any) -> Compiled | None:
            self.built.append((grid, arguments))
            return Compiled(self) if self.compiles else None

        return call


def launches(kernel: Any, x: Tensor, y: Tensor, out: Tensor, *, foreign: bool = False) -> list[Launch]:
    scratch = workspace((4, x.shape[0]), torch.int32, x.device)
    arguments = {
        "rows": Rows(y.clone() if foreign else y, y.stride(0)),
        "tiles": Tiles(x, list(x.shape)),
        "scratch": scratch,
        "more": workspace((100,), torch.float32, x.device),
        "out": out,
        "size": x.shape[0],
        "FLAG": True,
    }
    return [Launch(kernel, (7, 2), arguments), Launch(kernel, (0,), arguments)]


def call(cache: LaunchCache, kernel: Kernel, x: Tensor, y: Tensor, key: Any = (), **options: Any) -> Tensor:
    out = torch.empty_like(x)
    cache.run(key, (x, y, None), (out,), lambda: launches(kernel, x, y, out, **options))
    return out


def pair(size: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(size), torch.randn(size, 3)


def test_a_second_call_replays_with_its_own_tensors() -> None:
    cache, kernel = LaunchCache(), Kernel()
    call(cache, kernel, *pair())
    x, y = pair()
    out = call(cache, kernel, x, y)
    assert len(kernel.built) == len(kernel.replayed) == 1  # launches of empty grids never run
    grid, (rows, tiles, scratch, more, written, size, flag) = kernel.replayed[0]
    assert grid == (7, 2, 1)
    assert type(rows) is Rows
    assert rows.tensor is y
    assert rows.stride == 3
    assert type(tiles) is Tiles
    assert tiles.base is x
    assert tiles.shape == [8]
    assert written is out
    assert (size, flag) == (8, True)
    assert more.data_ptr() - scratch.data_ptr() == 512  # 4 x 8 integers, rounded up


@pytest.mark.parametrize("change", ["shape", "stride", "dtype", "alignment", "key", "absent"])
def test_another_call_is_built(change: str) -> None:
    cache, kernel = LaunchCache(), Kernel()
    x, y = pair()
    call(cache, kernel, x, y, key=("causal",))
    key: Any = ("causal",)
    match change:
        case "shape":
            x, y = pair(9)
        case "stride":
            y = torch.randn(3, 8).T
        case "dtype":
            x = x.double()
        case "alignment":
            x = torch.randn(9)[1:]
        case "key":
            key = ("full",)
        case "absent":
            out = torch.empty_like(x)
            cache.run(key, (x, y, y.clone()), (out,), lambda: launches(kernel, x, y, out))
    if change != "absent":
        call(cache, kernel, x, y, key=key)
    assert (len(kernel.built), len(kernel.replayed), len(cache)) == (2, 0, 2)


def test_equal_tensors_are_not_mixed_up_later() -> None:
    """After attention of x with itself, a call of x with z must not read x twice, nor the other way round."""
    cache, kernel = LaunchCache(), Kernel()
    x, z = torch.randn(8, 3), torch.randn(8, 3)
    for first, second in ((x, x), (x, z), (z, z), (z, x)):
        call(cache, kernel, first, second)
    assert (len(kernel.built), len(kernel.replayed)) == (2, 2)
    for (_, (rows, tiles, *_)), (first, second) in zip(kernel.replayed, ((z, z), (z, x)), strict=True):
        assert tiles.base is first
        assert rows.tensor is second


def test_memory_that_is_not_the_calls_is_made_for_every_call() -> None:
    cache, kernel = LaunchCache(), Kernel()
    for _ in range(3):
        call(cache, kernel, *pair(), foreign=True)
    assert (len(kernel.built), len(kernel.replayed), len(cache)) == (3, 0, 0)


def test_the_interpreter_runs_every_call_itself() -> None:
    cache, kernel = LaunchCache(), Kernel(compiles=False)
    for _ in range(2):
        call(cache, kernel, *pair())
    assert (len(kernel.built), len(kernel.replayed), len(cache)) == (2, 0, 0)


def test_no_tensor_is_kept_and_the_oldest_call_goes() -> None:
    cache, kernel = LaunchCache(size=2), Kernel()
    x, y = pair()
    alive = weakref.ref(x)
    call(cache, kernel, x, y)
    kernel.built.clear()
    del x, y
    assert alive() is None
    for size in (9, 10, 9, 8):
        call(cache, kernel, *pair(size))
    assert (len(kernel.built), len(kernel.replayed), len(cache)) == (3, 1, 2)


def test_a_failed_build_leaves_nothing_behind() -> None:
    cache, kernel = LaunchCache(), Kernel()

    def fail() -> list[Launch]:
        workspace((1,), torch.float32, torch.device("cpu"))
        raise ValueError("no such tiles")

    with pytest.raises(ValueError, match="no such tiles"):
        cache.run((), (torch.empty(1),), (), fail)
    call(cache, kernel, *pair())
    call(cache, kernel, *pair())
    assert len(kernel.replayed) == 1
