"""Elementary functions of Triton kernels that Triton lacks, or has only where there is a device."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(b_x):
    """1 - 2 / (exp(2 x) + 1), to an absolute error of a few 2^-24, which is what counts in a logit.

    The quotient is taken by rsqrt, one instruction, where a division takes eight. (The interpreter has no
    libdevice, where Triton's own tanh is.)
    """
    b_y = tl.exp2(b_x * 2.8853900817779268) + 1.0  # 2 log2 e
    return 1.0 - 2.0 * tl.rsqrt(b_y * b_y)
