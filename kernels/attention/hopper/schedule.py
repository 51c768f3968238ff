"""Which queries a program owns and which key blocks they see: the forward kernel's order of work.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
Prefixes: i_ index.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

ROWS = gl.constexpr(64)  # queries of a consumer: the height of a warpgroup's matrix instruction


class Problem(NamedTuple):
    """What every partition needs. A field that is None is a constant to the compiler: its code is gone."""

    queries: Any
    query_tiles: Any
    keys: Any
    heads: Any
    group: Any  # query heads a kv head
    batch: Any
    together: Any  # heads whose tiles are taken in turns
    window: Any
    starts: Any  # (B,) slots of the first queries
    lse: Any
    sinks: Any
    score_scale: Any  # as in `arguments.Rule`
    cap: Any


class Tile(NamedTuple):
    """Queries from ``first`` on of one head, and the key blocks [start, stop) that they see, at least one."""

    i_b: Any
    i_h: Any
    first: Any
    offset: Any  # slot of query 0
    start: Any
    stop: Any


@gluon.jit
def _place(turn):
    """Where this program stands in a round over all programs; every second round runs backwards."""
    place = gl.program_id(0)
    return gl.where(turn % 2 == 0, place, gl.num_programs(0) - 1 - place)


@gluon.jit
def turns_of(problem):
    """How many tiles this program owns."""
    programs = gl.num_programs(0)
    tiles = problem.query_tiles * problem.heads * problem.batch
    whole = tiles // programs
    return whole + (_place(whole) < tiles - whole * programs).to(gl.int32)


@gluon.jit
def tile_of(turn, problem, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr):
    """This program's tile in the ``turn``-th round.

    Some heads go together (`shapes.heads_together`). Of these, the tiles that see most keys come first, so
    that no long tile is left for the end; that every second round runs backwards gives programs equal work.
    """
    i = turn * gl.num_programs(0) + _place(turn)
    first_head = i // (problem.together * problem.query_tiles) * problem.together
    width = gl.minimum(problem.together, problem.heads * problem.batch - first_head)
    i = i - first_head * problem.query_tiles
    first = (problem.query_tiles - 1 - i // width) * BLOCK_M
    i_bh = first_head + i % width
    i_b = i_bh // problem.heads

    offset = problem.keys - problem.queries
    if problem.starts is not None:
        offset = gl.load(problem.starts + i_b).to(gl.int32)
    start, stop = _key_blocks(first, BLOCK_M, offset, problem, BLOCK_N, CAUSAL)
    return Tile(i_b, i_bh % problem.heads, first, offset, start, stop)


@gluon.jit
def sight(query, offset, problem, CAUSAL: gl.constexpr):
    """The keys [start, stop) that a query sees, or each of several."""
    slot = query + offset
    start = slot * 0
    stop = start + problem.keys
    if CAUSAL:
        stop = gl.minimum(stop, slot + 1)
    if problem.window is not None:
        start = gl.maximum(slot - problem.window + 1, 0)
        if not CAUSAL:
            stop = gl.minimum(stop, slot + problem.window)
    return start, stop


@gluon.jit
def _key_blocks(first, count, offset, problem, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr):
    """The key blocks [start, stop) that ``count`` queries see; one, all of it masked, if they see nothing."""
    start, _ = sight(first, offset, problem, CAUSAL)
    last = gl.minimum(first + count, problem.queries) - 1
    _, stop = sight(last, offset, problem, CAUSAL)
    start = gl.minimum(start, problem.keys - 1) // BLOCK_N
    return start, gl.maximum(gl.cdiv(gl.maximum(stop, 0), BLOCK_N), start + 1)


@gluon.jit
def own_blocks(
    tile, problem,
    WHICH: gl.constexpr, CONSUMERS: gl.constexpr, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """The key blocks [start, stop) of the tile that a consumer's own 64 queries see, at least one.

    The consumers' queries are so close that each has at most one block less than the tile at either end.
    """
    gl.static_assert(ROWS * (CONSUMERS - 1) <= BLOCK_N)
    start, stop = _key_blocks(tile.first + WHICH * ROWS, ROWS, tile.offset, problem, BLOCK_N, CAUSAL)
    start = gl.minimum(gl.maximum(start, tile.start), tile.stop - 1)
    return start, gl.maximum(gl.minimum(stop, tile.stop), start + 1)


@gluon.jit
def inner_blocks(
    tile, start, stop, problem, WHICH: gl.constexpr, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr
):
    """Of a consumer's key blocks [start, stop), without the last, those that need no mask."""
    first = tile.first + WHICH * ROWS
    _, inner_stop = sight(first, tile.offset, problem, CAUSAL)
    inner_start, _ = sight(first + ROWS - 1, tile.offset, problem, CAUSAL)
    inner_stop = gl.minimum(gl.maximum(gl.maximum(inner_stop, 0) // BLOCK_N, start), stop - 1)
    return gl.minimum(gl.maximum(gl.cdiv(inner_start, BLOCK_N), start), inner_stop), inner_stop
