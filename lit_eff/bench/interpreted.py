"""Triton's interpreter with matrix products whose rows do not depend on where they stand.

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
