"""What the programs of the Hopper split kernel walk, and in which order.

An item of work is a row tile of one kv head with its run of units: what one program of the portable split
kernel owns. Programs are persistent: of n programs, program p takes the items p, p + n, p + 2 n, ... The
loading warp and the computing warps each work out the same items and count the same steps.

Shapes: B batch, T query length, S cache slots, P pages a row, H query heads, K kv heads, D head dim.
Prefixes: p_ pointer, i_ index.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from lit_eff.kernels.attention.with_cache.combine import row_tile


class Problem(NamedTuple):
    """What every partition needs. A field that is None is a constant to the compiler: its code is gone."""

    p_lengths: Any
    p_query_lengths: Any
    p_page_table: Any
    stride_table_b: Any
    stride_table_p: Any
    queries: Any
    capacity: Any
    group: Any  # query heads a kv head
    kv_heads: Any
    window: Any
    runs: Any  # items that share the units of a row tile
    items: Any


class Item(NamedTuple):
    """Rows from ``first_row`` on of one kv head, and the steps over slots [begin, end): none if it is empty.

    These lie within the units [first, last) and within the slots [start, stop) that any of the rows sees.
    """

    i_b: Any
    i_kv: Any
    first_row: Any
    length: Any  # slots before the call's own
    first: Any
    last: Any
    start: Any
    stop: Any
    begin: Any  # a multiple of the step
    end: Any


@gluon.jit
def item_of(
    item, problem,
    ROWS: gl.constexpr, BLOCK_N: gl.constexpr, UNIT: gl.constexpr, WINDOWED: gl.constexpr,
    WHOLE: gl.constexpr,
):  # fmt: skip
    """The ``item``-th item. Row tiles run fastest, then kv heads, whose keys lie side by side, runs, rows."""
    tiles = gl.cdiv(problem.queries * problem.group, ROWS)
    first_row = item % tiles * ROWS
    i_kv = item // tiles % problem.kv_heads
    i_run = item // (tiles * problem.kv_heads) % problem.runs
    i_b = item // (tiles * problem.kv_heads * problem.runs)
    length, _t, _slot, _last, start, stop = row_tile(
        problem.p_lengths, problem.p_query_lengths, i_b, first_row, first_row,
        problem.queries, problem.capacity, problem.group, problem.window, ROWS, WINDOWED,
    )  # fmt: skip
    first, last = start // UNIT, gl.cdiv(stop, UNIT)
    if not WHOLE:  # this item's share of the units that this row has
        share = gl.cdiv(gl.maximum(last - first, 0), problem.runs)
        first += i_run * share
        last = gl.minimum(first + share, last)
    begin = gl.maximum(first * UNIT, start // BLOCK_N * BLOCK_N)
    end = gl.minimum(last * UNIT, stop)
    return Item(i_b, i_kv, first_row, length, first, last, start, stop, begin, end)
