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
    """What every partition needs to know. A field that is None is a constant to the compiler, its code gone."""

    queries: Any
    keys: Any
    heads: Any
    group: Any  # query heads a kv head
    batch: Any
    paired: Any  # whether programs take tiles in pairs
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
def _pairs_of(problem, query_tiles):
    """How many pairs of tiles there are, and how many of them are this program's."""
    pairs = 0
    if problem.paired:
        pairs = problem.heads * problem.batch // 2 * query_tiles
    return pairs, gl.cdiv(gl.maximum(pairs - gl.program_id(0), 0), gl.num_programs(0))


@gluon.jit
def _single_place(pairs):
    """Where this program stands when tiles without a partner are given out: first who has one pair less."""
    programs = gl.num_programs(0)
    return (gl.program_id(0) + programs - pairs % programs) % programs


@gluon.jit
def turns_of(problem, BLOCK_M: gl.constexpr):
    """How many tiles this program owns."""
    query_tiles = gl.cdiv(problem.queries, BLOCK_M)
    pairs, own_pairs = _pairs_of(problem, query_tiles)
    singles = query_tiles * problem.heads * problem.batch - 2 * pairs
    own_singles = gl.cdiv(gl.maximum(singles - _single_place(pairs), 0), gl.num_programs(0))
    return 2 * own_pairs + own_singles


@gluon.jit
def tile_of(turn, problem, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr):
    """This program's ``turn``-th tile.

    Programs walk head after head together, so that several read the same keys at the same time, from L2.
    Under a causal mask, tiles see unequally many keys: a program takes them in pairs, the i-th tile from the
    end of one head and the i-th from the start of the next, which together are the same work for every i.
    """
    query_tiles = gl.cdiv(problem.queries, BLOCK_M)
    pairs, own_pairs = _pairs_of(problem, query_tiles)
    half = turn % 2
    i = turn // 2 * gl.num_programs(0) + gl.program_id(0)
    i_bh = i // query_tiles * 2 + half
    i_m = i % query_tiles
    if turn >= 2 * own_pairs:
        half = 0
        i = (turn - 2 * own_pairs) * gl.num_programs(0) + _single_place(pairs)
        i_bh = pairs // query_tiles * 2 + i // query_tiles
        i_m = i % query_tiles
    first = gl.where(half == 0, query_tiles - 1 - i_m, i_m) * BLOCK_M
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
def inner_blocks(tile, start, stop, problem, WHICH: gl.constexpr, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr):
    """Of a consumer's key blocks [start, stop), without the last, those that need no mask."""
    first = tile.first + WHICH * ROWS
    _, inner_stop = sight(first, tile.offset, problem, CAUSAL)
    inner_start, _ = sight(first + ROWS - 1, tile.offset, problem, CAUSAL)
    inner_stop = gl.minimum(gl.maximum(gl.maximum(inner_stop, 0) // BLOCK_N, start), stop - 1)
    return gl.minimum(gl.maximum(gl.cdiv(inner_start, BLOCK_N), start), inner_stop), inner_stop
