"""A device function that toy kernels call from another file."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_first(p_x, count, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    return tl.load(p_x + o, mask=o < count)
