"""Reading ahead into the L2 cache what the next phase reads first: the memory has work while programs wait.

A span is the address of its first byte, on a 16-byte boundary, and how many bytes there are, a multiple of
16; none if 0. Who knows what comes next makes a tuple of spans; who knows when requests it.

Prefixes: p_ pointer.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def read_ahead(spans, now):
    """Bring the spans into the L2 cache (sm_90) if ``now``. One thread asks; nothing waits."""
    for j in tl.static_range(len(spans)):
        tl.inline_asm_elementwise(
            """
            {
            .reg .pred asks;
            .reg .u32 thread;
            mov.u32 thread, %tid.x;
            setp.eq.u32 asks, thread, 0;
            setp.ne.and.u32 asks, $2, 0, asks;
            @asks cp.async.bulk.prefetch.L2.global [$1], $2;
            mov.u32 $0, 0;
            }
            """,
            "=r,l,r",
            [spans[j][0], tl.where(now, spans[j][1], 0)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def anew(x):
    """``x``. What follows from it cannot be moved out of the loop over layers, to be kept in registers."""
    return tl.inline_asm_elementwise("mov.u32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def span(p_first, bytes):
    return p_first.to(tl.int64), bytes


@triton.jit
def rows_ahead(p_matrix, first, rows, MOST: tl.constexpr, CHANNELS: tl.constexpr):
    """The first MOST at the most of ``rows`` rows of CHANNELS 16-bit elements: one span, or none for 0."""
    spans = ()
    if MOST > 0:
        p_first = p_matrix + first.to(tl.int64) * CHANNELS
        spans = (span(p_first, tl.minimum(rows, MOST) * (CHANNELS * 2)),)  # type: ignore[assignment]
    return spans


@triton.jit
def pairs_ahead(
    p_matrix, first, pairs, HALF_DIM: tl.constexpr, MOST: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Likewise MOST at the most of ``pairs`` pairs of rows HALF_DIM apart, of two heads at the most: four."""
    first, pairs = anew(first), tl.minimum(pairs, MOST)
    row = first // HALF_DIM * (2 * HALF_DIM) + first % HALF_DIM
    here = tl.minimum(pairs, HALF_DIM - first % HALF_DIM)
    next_row = (first // HALF_DIM + 1) * (2 * HALF_DIM)
    beyond = tl.minimum(pairs - here, HALF_DIM)
    return (
        rows_ahead(p_matrix, row, here, MOST, CHANNELS)
        + rows_ahead(p_matrix, row + HALF_DIM, here, MOST, CHANNELS)
        + rows_ahead(p_matrix, next_row, beyond, MOST, CHANNELS)
        + rows_ahead(p_matrix, next_row + HALF_DIM, beyond, MOST, CHANNELS)
    )
