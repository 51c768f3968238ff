"""HBM traffic of attention by the papers' formulas: standard, and both FlashAttention loop orders.

Pure arithmetic. Block loads count whole blocks: where causality or a window hides part of a block, the block
is moved all the same; blocks hidden altogether are skipped. The exact bytes of our own kernels, ragged edges
and masks included, stand in `traffic_model`.

Shapes: B batch, T query length (the papers' N, which take S = T), S key length, H query heads, K kv heads,
D head dim.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from lit_eff.profiling.modelled import STATISTIC_BYTES, Traffic

Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class AttentionShape:
    """One attention call. ``causal`` is bottom-right, unless ``starts`` gives each batch row's first slot."""

    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    element_bytes: int = 2
    causal: bool = False
    window: int | None = None
    starts: tuple[int, ...] | None = None
    id_bytes: int = 8  # size of a document id or a start
    documents: Rows | None = None  # ids of the queries, batch row by batch row
    key_documents: Rows | None = None
    sinks: bool = False
    alibi: bool = False
    dropout: bool = False

    def offsets(self) -> tuple[int, ...]:
        """Key slot of each batch row's first query."""
        return self.starts if self.starts is not None else (self.keys - self.queries,) * self.batch

    @property
    def is_causal(self) -> bool:
        return self.causal or self.starts is not None

    def visible(self, first: int, count: int, offset: int) -> tuple[int, int]:
        """The keys [start, stop) that any of ``count`` queries from ``first`` sees, documents aside."""
        start, stop = 0, self.keys
        if self.is_causal:
            stop = min(stop, max(first + count + offset, 0))
        elif self.window is not None:
            stop = min(stop, max(first + count - 1 + offset + self.window, 0))
        if self.window is not None:
            start = max(first + offset - self.window + 1, 0)
        return start, max(stop, start)

    def visible_pairs(self) -> int:
        """Pairs of one query and one key it sees, over batch and query heads."""
        pairs = 0
        for row, offset in enumerate(self.offsets()):
            places: dict[int, list[int]] = {}  # of the keys, by document
            if self.key_documents is not None:
                for s, i in enumerate(self.key_documents[row]):
                    places.setdefault(i, []).append(s)
            for t in range(self.queries):
                start, stop = self.visible(t, 1, offset)
                if self.documents is not None:
                    own = places.get(self.documents[row][t], [])
                    start, stop = bisect_left(own, start), bisect_left(own, stop)
                pairs += stop - start
        return pairs * self.heads


def forward_flops(shape: AttentionShape) -> int:
    """4 D (two products) a visible pair: 4 B H T^2 D in full; causal, half of that and half the diagonal."""
    return 4 * shape.head_dim * shape.visible_pairs()


def backward_flops(shape: AttentionShape) -> int:
    """2.5 times the forward: five products instead of two."""
    return forward_flops(shape) * 5 // 2


def _sizes(shape: AttentionShape) -> tuple[int, int, int, int]:
    """Bytes of: the scores, a tensor like q, a tensor like k, one statistic a query."""
    rows = shape.batch * shape.heads * shape.queries
    return (
        rows * shape.keys * shape.element_bytes,
        rows * shape.head_dim * shape.element_bytes,
        shape.batch * shape.kv_heads * shape.keys * shape.head_dim * shape.element_bytes,
        rows * STATISTIC_BYTES,
    )


def standard_forward(shape: AttentionShape) -> Traffic:
    """Algorithm 0 (Dao et al. 2022): 4 N^2 + 4 N d elements a head; S and P go through HBM, masked or not."""
    scores, like_q, like_k, _ = _sizes(shape)
    return Traffic(
        {"q": like_q, "k": like_k, "scores": scores, "weights": scores, "v": like_k},
        {"scores": scores, "weights": scores, "out": like_q},
    )


def standard_backward(shape: AttentionShape) -> Traffic:
    """Algorithm 3 (Dao et al. 2022): 7 N^2 + 8 N d elements a head; with the forward 11 N^2 + 12 N d."""
    scores, like_q, like_k, _ = _sizes(shape)
    return Traffic(
        {"weights": 2 * scores, "dweights": scores, "dscores": 2 * scores}
        | {"dout": 2 * like_q, "v": like_k, "k": like_k, "q": like_q},
        {"dweights": scores, "dscores": scores, "dq": like_q, "dk": like_k, "dv": like_k},
    )


def flash1_blocks(head_dim: int, sram_elements: int) -> tuple[int, int]:
    """(B_r, B_c) of FlashAttention-1, Algorithm 1, for an on-chip memory of ``sram_elements``."""
    columns = ceil(sram_elements / (4 * head_dim))
    return min(columns, head_dim), columns


def _flash1_pairs(shape: AttentionShape, block_q: int, block_k: int) -> Iterator[tuple[int, bool]]:
    """Query rows of each visited (K block, Q block) pair of one head, batch row by row."""
    for offset in shape.offsets():
        for n in range(0, shape.keys, block_k):
            for m in range(0, shape.queries, block_q):
                rows = min(block_q, shape.queries - m)
                start, stop = shape.visible(m, rows, offset)
                yield rows, start < min(n + block_k, shape.keys) and n < stop


def flash1_forward(shape: AttentionShape, sram_elements: int) -> Traffic:
    """FlashAttention-1, Algorithm 1: K, V blocks outside; O, l, m are read and written once a K block.

    Theta(N^2 d^2 / M) (Theorem 2). O, l and m are initialised in HBM (line 2), which is counted.
    """
    block_q, block_k = flash1_blocks(shape.head_dim, sram_elements)
    visits = shape.heads * sum(rows for rows, seen in _flash1_pairs(shape, block_q, block_k) if seen)
    row = shape.head_dim * shape.element_bytes
    _, like_q, like_k, statistic = _sizes(shape)
    return Traffic(
        {"k": like_k, "v": like_k, "q": visits * row, "out": visits * row}
        | {"sum": visits * STATISTIC_BYTES, "max": visits * STATISTIC_BYTES},
        {"out": visits * row + like_q}
        | {"sum": visits * STATISTIC_BYTES + statistic, "max": visits * STATISTIC_BYTES + statistic},
    )


def flash1_backward(shape: AttentionShape, sram_elements: int) -> Traffic:
    """FlashAttention-1, Algorithm 4 without dropout: dQ is read and written once a K, V block."""
    block_q, block_k = flash1_blocks(shape.head_dim, sram_elements)
    visits = shape.heads * sum(rows for rows, seen in _flash1_pairs(shape, block_q, block_k) if seen)
    row = shape.head_dim * shape.element_bytes
    _, like_q, like_k, _ = _sizes(shape)
    inner = dict.fromkeys(("q", "out", "dout", "dq"), visits * row)
    statistics = dict.fromkeys(("sum", "max"), visits * STATISTIC_BYTES)
    return Traffic(
        {"k": like_k, "v": like_k} | inner | statistics,
        {"dq": visits * row + like_q, "dk": 2 * like_k, "dv": 2 * like_k},
    )


def _flash2_key_rows(shape: AttentionShape, block_q: int, block_k: int) -> int:
    """Key rows that one head's Q blocks load, over the batch: whole blocks, from first to last visible."""
    rows = 0
    for offset in shape.offsets():
        for m in range(0, shape.queries, block_q):
            start, stop = shape.visible(m, min(block_q, shape.queries - m), offset)
            if start < stop:
                rows += min(ceil(stop / block_k) * block_k, shape.keys) - start // block_k * block_k
    return rows


def flash2_forward(shape: AttentionShape, block_q: int, block_k: int) -> Traffic:
    """FlashAttention-2, Algorithm 1: Q blocks outside; K and V once a Q block, O and the log-sum-exp once."""
    key_rows = shape.heads * _flash2_key_rows(shape, block_q, block_k)
    row = shape.head_dim * shape.element_bytes
    _, like_q, _, statistic = _sizes(shape)
    return Traffic({"q": like_q, "k": key_rows * row, "v": key_rows * row}, {"out": like_q, "lse": statistic})


def flash2_backward(shape: AttentionShape, block_q: int, block_k: int) -> Traffic:
    """FlashAttention-2, Algorithm 2: dQ is accumulated in float32, by atomics, once a K, V block."""
    visits = shape.heads * sum(rows for rows, seen in _flash1_pairs(shape, block_q, block_k) if seen)
    row = shape.head_dim * shape.element_bytes
    row_float = shape.head_dim * STATISTIC_BYTES
    _, like_q, like_k, statistic = _sizes(shape)
    return Traffic(
        {"k": like_k, "v": like_k, "q": visits * row, "dq": visits * row_float, "out": like_q}
        | {"dout": visits * row + like_q, "lse": visits * STATISTIC_BYTES, "delta": visits * STATISTIC_BYTES},
        {"dq": visits * row_float, "dk": like_k, "dv": like_k, "delta": statistic},
    )
