"""The kernels' arguments in groups. A field that is None is a constant to the compiler: the feature is off
and its code gone.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Rows(NamedTuple):
    """A (B, rows, heads, D) tensor. Within kernels also one head of it, whose rows start at ``pointer``."""

    pointer: Any
    stride_b: int
    stride_row: int
    stride_h: int
    stride_d: int


class Statistic(NamedTuple):
    """One float32 a query and head: (B, H, T)."""

    pointer: Any
    stride_b: int
    stride_h: int


class Sizes(NamedTuple):
    """``starts`` (B,): slots of the first queries. ``cu_seqlens`` (B + 1,): rows are packed sequences."""

    queries: int
    keys: int
    group: int  # query heads a kv head
    starts: Any
    cu_seqlens_q: Any
    cu_seqlens_k: Any


class Documents(NamedTuple):
    """Ids of queries and keys, and `documents.document_ranges` for this kernel's tiles."""

    query_ids: Any
    stride_qb: int
    stride_qt: int
    key_ids: Any
    stride_kb: int
    stride_ks: int
    ranges: Any


class Rule(NamedTuple):
    """How the product of a query and a key becomes a weight, in base 2.

    Without a softcap ``score_scale`` is scale * log2(e); with one it is scale / softcap, and ``cap`` is
    softcap * log2(e).
    """

    score_scale: float
    cap: float | None
    inverse_cap: float | None
    window: int | None
    slopes: Any  # (H,) of ALiBi
    seed: Any  # of dropout, (1,) int64
    drop_below: int | None  # `dropout.keep_threshold`
    keep_scale: float | None  # 1 / (1 - dropout_p)


class Row(NamedTuple):
    """Within kernels: one batch row."""

    i_b: Any
    queries: Any
    keys: Any
    offset: Any  # slot of the first query
    first_query: Any  # rows of the tensors where its queries and keys start: 0 unless packed
    first_key: Any


class Head(NamedTuple):
    """Within kernels: one head of a batch row, with all that the row has."""

    i_h: Any
    i_b: Any
    queries: Any
    keys: Any
    offset: Any
    slope: Any  # of ALiBi, in base 2, and dropout's seed: zeros where these are off
    seed: Any
