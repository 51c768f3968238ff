"""Kernel functions of scalar arithmetic, run as plain Python: their order of work, and what they copy."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any


class Number(int):
    """An integer that has been loaded."""

    def to(self, _: Any) -> Number:
        return self


class Pointer(tuple[int, ...]):
    """A tensor of integers, whose addresses are their values."""

    def __add__(self, i: Any) -> Any:
        return Number(self[i])


class Anything:
    """Barriers and shared memory, of which nothing is kept but a shape."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def index(self, _: int) -> Anything:
        return self

    def _reinterpret(self, *_: Any) -> Anything:
        return self

    def __getattr__(self, name: str) -> Any:
        return Anything(*self.shape)


def ignore(*_: Any, **__: Any) -> None:
    pass


NO_BARRIERS = SimpleNamespace(wait=ignore, expect=ignore, arrive=ignore)


def in_python(function: Any, *, place: int = 0, programs: int = 1, **changes: Any) -> Callable[..., Any]:
    """``function`` as program ``place`` of ``programs``; ``changes`` stand for names that it uses."""
    scalars = SimpleNamespace(
        minimum=min,
        maximum=max,
        cdiv=lambda a, b: -(-a // b),
        where=lambda condition, a, b: a if condition else b,
        load=lambda value, mask=True, other=0: value if mask else Number(other),
        int32=None,
        int64=None,
        program_id=lambda _: place,
        num_programs=lambda _: programs,
        static_range=range,
    )
    names = {"gl": scalars, "tl": scalars, "mbarrier": NO_BARRIERS, **changes}
    return FunctionType(function.fn.__code__, {**function.fn.__globals__, **names})
