"""The exact bytes our attention kernels request from HBM, tile by tile: `traffic` counts them and must agree.

Pure arithmetic over the kernels' own loop bounds. A lane that a mask switches off is not requested. Tensor
names are the kernels' pointer arguments without ``p_``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lit_eff.kernels.attention.io_model import STATISTIC_BYTES, AttentionShape, Traffic
from lit_eff.kernels.attention.tiles import Tiles


def key_range(shape: AttentionShape, tiles: Tiles, first: int, offset: int) -> range:
    """First rows of the key blocks that the query tile at ``first`` visits: `blocks.key_range` in Python."""
    last_slot = min(first + tiles.block_m, shape.queries) - 1 + offset
    start, stop = 0, shape.keys
    if shape.is_causal:
        stop = min(stop, max(last_slot + 1, 0))
        if shape.window is not None:
            start = max(first + offset - shape.window + 1, 0) // tiles.block_n * tiles.block_n
    return range(start, stop, tiles.block_n)


def query_range(shape: AttentionShape, tiles: Tiles, first: int, offset: int) -> range:
    """First rows of the query blocks that the key tile at ``first`` visits, as `blocks.query_range`."""
    last = min(first + tiles.block_n, shape.keys) - 1
    start, stop = 0, shape.queries
    if shape.is_causal:
        start = max(first - offset, 0) // tiles.block_m * tiles.block_m
        if shape.window is not None:
            stop = min(stop, max(last + shape.window - offset, 0))
    return range(start, stop, tiles.block_m)


Ranges = Callable[[AttentionShape, Tiles, int, int], range]


def _walks(
    shape: AttentionShape, tiles: Tiles, ranges: Ranges, own: int, other: int, step: int, other_step: int
) -> Iterator[tuple[int, int]]:
    """(rows owned, rows walked) of every program of one head, over the batch."""
    for offset in shape.offsets():
        for first in range(0, own, step):
            walked = sum(min(other_step, other - n) for n in ranges(shape, tiles, first, offset))
            yield min(step, own - first), walked


def _query_programs(shape: AttentionShape, tiles: Tiles) -> list[tuple[int, int]]:
    return (
        list(_walks(shape, tiles, key_range, shape.queries, shape.keys, tiles.block_m, tiles.block_n))
        * shape.heads
    )


def _masks(shape: AttentionShape, programs: int, query_rows: int, key_rows: int) -> dict[str, int]:
    """Document ids beside the rows they belong to, and one start a program."""
    reads = {}
    if shape.documents:
        reads["documents"] = query_rows * shape.id_bytes
        reads["key_documents"] = key_rows * shape.id_bytes
    if shape.starts is not None:
        reads["starts"] = programs * shape.id_bytes
    return reads


def forward_traffic(shape: AttentionShape, tiles: Tiles) -> Traffic:
    """Requests of `attention_forward_kernel`: Q, O and LSE once, K and V once a query tile that sees them."""
    programs = _query_programs(shape, tiles)
    owned, walked = sum(own for own, _ in programs), sum(walk for _, walk in programs)
    row = shape.head_dim * shape.element_bytes
    return Traffic(
        {"q": owned * row, "k": walked * row, "v": walked * row}
        | _masks(shape, len(programs), owned, walked),
        {"out": owned * row, "lse": owned * STATISTIC_BYTES},
    )


def delta_traffic(shape: AttentionShape, *, lse_gradient: bool = False) -> Traffic:
    """Requests of `attention_delta_kernel`: O, dO and perhaps dLSE in, delta out."""
    rows = shape.batch * shape.heads * shape.queries
    row = shape.head_dim * shape.element_bytes
    reads = {"out": rows * row, "dout": rows * row}
    if lse_gradient:
        reads["dlse"] = rows * STATISTIC_BYTES
    return Traffic(reads, {"delta": rows * STATISTIC_BYTES})


def key_gradient_traffic(shape: AttentionShape, tiles: Tiles) -> Traffic:
    """Requests of `attention_key_gradient_kernel`: K, V, dK, dV once; Q, dO once a key tile they see."""
    programs = (
        list(_walks(shape, tiles, query_range, shape.keys, shape.queries, tiles.block_n, tiles.block_m))
        * shape.kv_heads
    )
    group = shape.heads // shape.kv_heads
    owned, walked = sum(own for own, _ in programs), group * sum(walk for _, walk in programs)
    row = shape.head_dim * shape.element_bytes
    return Traffic(
        {"k": owned * row, "v": owned * row, "q": walked * row, "dout": walked * row}
        | {"lse": walked * STATISTIC_BYTES, "delta": walked * STATISTIC_BYTES}
        | _masks(shape, len(programs), walked, owned),
        {"dk": owned * row, "dv": owned * row},
    )


def query_gradient_traffic(shape: AttentionShape, tiles: Tiles) -> Traffic:
    """Requests of `attention_query_gradient_kernel`: Q, dO, dQ once; K, V once a query tile."""
    programs = _query_programs(shape, tiles)
    owned, walked = sum(own for own, _ in programs), sum(walk for _, walk in programs)
    row = shape.head_dim * shape.element_bytes
    return Traffic(
        {"q": owned * row, "dout": owned * row, "k": walked * row, "v": walked * row}
        | {"lse": owned * STATISTIC_BYTES, "delta": owned * STATISTIC_BYTES}
        | _masks(shape, len(programs), owned, walked),
        {"dq": owned * row},
    )
