"""Scores that a query does not see, set to -inf."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def hide_from(b_s, o_key, o_stop):
    """Scores ``b_s`` (float32), -inf where a key lies at or past its query's ``o_stop``.

    ``o_key`` and ``o_stop`` (int32) have an axis of 1 where the scores have queries and keys.

    One comparison and one choice an element. Compared first and chosen later, as `gl.where` is compiled, the
    answers would be packed into bits and taken out again, which is twice as many instructions.
    """
    return gl.inline_asm_elementwise(
        "{.reg .pred p; setp.lt.s32 p, $2, $3; selp.f32 $0, $1, 0fFF800000, p;}", "=f,f,r,r",
        [b_s, gl.broadcast(o_key, b_s)[0], gl.broadcast(o_stop, b_s)[0]], gl.float32, is_pure=True, pack=1,
    )  # fmt: skip
