"""The incoming gradient of the loss times the gradients made with it: nothing to do where it is 1.

Whether it is 1 is known on the device alone, so the kernel asks there instead of making the host wait.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lit_eff.kernels.cross_entropy.sizes import SCALE_BLOCK, scale_programs
from lit_eff.profiling.launch import Launch


@triton.jit
def scale_kernel(p_x, p_factor, count, BLOCK: tl.constexpr):
    factor = tl.load(p_factor).to(tl.float32)
    if factor != 1.0:
        for block in range(tl.program_id(0), tl.cdiv(count, BLOCK), tl.num_programs(0)):
            o_x = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)
            b_x = tl.load(p_x + o_x, mask=o_x < count)
            b_y = b_x.to(tl.float32) * factor
            tl.store(p_x + o_x, b_y.to(p_x.dtype.element_ty), mask=o_x < count)


def scale_launch(tensor: Tensor, factor: Tensor) -> Launch:
    """The launch that multiplies a contiguous ``tensor`` in place by ``factor``, one number on the device."""
    arguments = {"p_x": tensor, "p_factor": factor, "count": tensor.numel(), "BLOCK": SCALE_BLOCK}
    return Launch(scale_kernel, (scale_programs(tensor.numel()),), arguments, num_warps=8)
