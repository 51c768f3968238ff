"""What becomes of a product before it is stored: activations, in float32.

Prefixes: b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from lit_eff.kernels.elementary import tanh


@triton.jit
def silu(b_x):
    return b_x / (1.0 + tl.exp2(b_x * -1.4426950408889634))  # log2 e


@triton.jit
def activated(b_x, ACTIVATION: tl.constexpr):
    """``ACTIVATION``: None, gelu, gelu_tanh or silu (`reference.ACTIVATIONS`)."""
    if ACTIVATION == "gelu":
        b_x = 0.5 * b_x * (1.0 + tl.erf(b_x * 0.7071067811865476))  # sqrt(1/2)
    elif ACTIVATION == "gelu_tanh":
        b_x = 0.5 * b_x * (1.0 + tanh(0.7978845608028654 * (b_x + 0.044715 * b_x * b_x * b_x)))  # sqrt(2/pi)
    elif ACTIVATION == "silu":
        b_x = silu(b_x)
    return b_x


@triton.jit
def gated(b_x, HALF: tl.constexpr, ROWS: tl.constexpr):
    """silu(gate) * up, (HALF, ROWS), of a tile whose first HALF rows are the gates of the others."""
    b_gate, b_up = tl.split(tl.permute(tl.reshape(b_x, (2, HALF, ROWS)), (1, 2, 0)))
    return silu(b_gate) * b_up
