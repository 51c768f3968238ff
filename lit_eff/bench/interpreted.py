"""Triton's interpreter made fit for tests: rows that are alike, and many small functions.

The interpreter multiplies by NumPy, whose BLAS gives a row other bits at another place in the tile on some
processors. A GPU's matrix instruction does not, and what is tested there is that our kernels do not either.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def rows_alike() -> Iterator[None]:
    """Meanwhile interpreted products add up one rank at a time, each element by itself."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(_: Any, a: Any, b: Any, d: Any, *__: Any) -> Any:
        total = d.data.copy()
        left, right = a.data.astype(total.dtype), b.data.astype(total.dtype)
        for rank in range(left.shape[-1]):
            total += left[..., rank, None] * right[..., None, rank, :]
        return TensorHandle(total, d.dtype.scalar)

    with mock.patch.object(InterpreterBuilder, "create_dot", create_dot):
        yield


@contextmanager
def patched_once() -> Iterator[None]:
    """Triton's interpreter, patching the language once a launch instead of at every call of a function.

    Meanwhile a kernel of many small functions runs several times as fast. Nothing else changes.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    launch = interpreter.GridExecutor.__call__
    patched: set[frozenset[str]] = set()  # modules, by which of them a function's own module names
    modules: dict[Any, frozenset[str]] = {}

    def launch_anew(self: Any, *args: Any, **kwargs: Any) -> Any:
        patched.clear()
        return launch(self, *args, **kwargs)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fn not in modules:
            known = self.fn.__globals__.values()
            modules[self.fn] = frozenset(
                each.__name__ for each in (tl, tl.core) if any(v is each for v in known)
            )
        if modules[self.fn] not in patched:
            interpreter._patch_lang(self.fn)
            patched.add(modules[self.fn])
        return self.rewrite()(*args, **kwargs)

    with (
        mock.patch.object(interpreter.GridExecutor, "__call__", launch_anew),
        mock.patch.object(interpreter.InterpretedFunction, "__call__", call),
    ):
        yield
