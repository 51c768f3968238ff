"""The kernels' arguments in groups. A field that is None is a constant to the compiler: the feature is off
and its code gone. Kernels ask fields, never a group, whether they are None: Triton 3.6 cannot compare a group
that holds one.

Shapes: B batch, T query length, S cache slots, P pages a row, H heads, D head dim, M positions of the tables,
R rotary pairs (half the rotary dim).
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Heads(NamedTuple):
    """(B, T, H, D) by its strides."""

    pointer: Any
    stride_b: int
    stride_t: int
    stride_h: int
    stride_d: int


class Cache(NamedTuple):
    """(B, S, H, D), or (pages, page size, H, D), by its strides."""

    pointer: Any
    stride_b: int
    stride_s: int
    stride_h: int
    stride_d: int


class Angles(NamedTuple):
    """Contiguous float32 tables (M, R), both None without rotation."""

    cos: Any
    sin: Any
    rows: int


class Slots(NamedTuple):
    """Where each row's tokens go: `lengths` tokens are there before; the other tensors may be None."""

    lengths: Any  # (B,)
    query_lengths: Any  # (B,)
    page_table: Any  # (B, P)
    stride_row: int
    stride_page: int
    positions: Any  # (B, T)
    stride_b: int
    stride_t: int
    queries: int  # T
    capacity: int  # slots of a row
    pages: int  # of the cache
