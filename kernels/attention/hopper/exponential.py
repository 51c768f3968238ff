"""2^x shared out between the two units that can compute it.

A multiprocessor of the H100 takes 16 exponentials a clock in its special function unit, but 4,096 operations
in its tensor cores: at head dim 64 the softmax's exponentials last as long as both matrix products. So one of
every few elements is computed by multiply-adds instead (the idea is FlashAttention-4's, for Blackwell):
2^x = 2^n 2^f with n = round(x), where 2^f for |f| <= 1/2 is a cubic of relative error 7.5e-5, far below the
rounding of the weights to bfloat16 that follows.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Adding 1.5 * 2^23 leaves round(x) in the low bits; -126 keeps the exponent a normal number's.
CUBIC = """
max.ftz.f32 x, $IN, 0fC2FC0000;
add.rn.ftz.f32 t, x, 0f4B400000;
sub.rn.ftz.f32 n, t, 0f4B400000;
sub.rn.ftz.f32 x, x, n;
fma.rn.ftz.f32 p, x, 0f3D61FBAF, 0f3E786F0D;
fma.rn.ftz.f32 p, p, x, 0f3F31798D;
fma.rn.ftz.f32 p, p, x, 0f3F7FFB49;
mov.b32 i, t;
shl.b32 i, i, 23;
mov.b32 j, p;
add.s32 i, i, j;
mov.b32 $OUT, i;
"""


def _instructions(every):
    """Of ``every`` elements the last by the cubic, the others by the special function unit."""
    special = "".join(f"ex2.approx.ftz.f32 ${i}, ${every + i};\n" for i in range(every - 1))
    cubic = CUBIC.replace("$OUT", f"${every - 1}").replace("$IN", f"${2 * every - 1}")
    return gl.constexpr("{\n.reg .f32 x, t, n, p;\n.reg .b32 i, j;\n" + special + cubic + "}")


FOUR = _instructions(4)
FOUR_C = gl.constexpr(",".join(["=f"] * 4 + ["f"] * 4))
EIGHT = _instructions(8)
EIGHT_C = gl.constexpr(",".join(["=f"] * 8 + ["f"] * 8))


@gluon.jit
def exp2(x, EVERY: gl.constexpr):
    """2^x, x <= 0; with ``EVERY`` > 0 one element of so many by multiply-adds, at least 2^-126 there."""
    if EVERY == 4:
        return gl.inline_asm_elementwise(FOUR, FOUR_C, [x], gl.float32, is_pure=True, pack=4)
    elif EVERY == 8:
        return gl.inline_asm_elementwise(EIGHT, EIGHT_C, [x], gl.float32, is_pure=True, pack=8)
    else:
        return gl.exp2(x)
