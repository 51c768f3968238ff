"""The kernels' arguments in groups.

Shapes: B sequences, V vocabulary, M nodes, D depth.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Rows(NamedTuple):
    """Rows of logits: all of the target's, then all of the draft's; without drafts, ``draft`` is ``target``.

    Each sequence has ``target_each`` of the first and ``draft_each`` of the second.
    """

    target: Any
    target_stride: int
    target_rows: int
    target_each: int
    draft: Any
    draft_stride: int
    draft_each: int


class TreeTables(NamedTuple):
    """A tree's shape, int32: of each node its parent, its place among siblings and its depth (M,); of each
    parent the draft row (M + 1,), and of each draft row the parent's target row and the children (R, C)."""

    parents: Any
    ranks: Any
    depths: Any
    draft_rows: Any
    target_rows: Any
    children: Any
    nodes: int
    width: int  # C, the most children of a parent
    draft_count: int  # R, parents
