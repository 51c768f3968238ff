"""The shape of a tree of drafts, and the tables that kernels read it from.

Shapes: M nodes, R parents, C children of a parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from lit_eff.errors import UserError

MAX_NODES = 256


@dataclass(frozen=True)
class Tree:
    """A tree by the parent of each node, -1 for the root (the last token before the drafts).

    Parents come before their children, siblings in the order they were drawn. A target has a row of logits
    for the root and for each node, M + 1; a draft one for each parent, R, the root's first.

    Raises:
        UserError: naming the node whose parent does not come before it, or more than 256 nodes.
    """

    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parents", tuple(self.parents))
        if len(self.parents) > MAX_NODES:
            raise UserError(f"a tree of {len(self.parents)} nodes; expected at most {MAX_NODES}")
        for node, parent in enumerate(self.parents):
            if not -1 <= parent < node:
                raise UserError(f"node {node} has parent {parent}; expected -1 (the root) to {node - 1}")

    @classmethod
    def chain(cls, length: int) -> Tree:
        return cls(tuple(range(-1, length - 1)))

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Of each node: 0 for the root's children."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return tuple(depths)

    @property
    def depth(self) -> int:
        """The most nodes on a path."""
        return max(self.depths, default=-1) + 1

    @cached_property
    def families(self) -> dict[int, list[int]]:
        """Each parent's children; a parent's place is its draft row."""
        families: dict[int, list[int]] = {}
        for node, parent in enumerate(self.parents):
            families.setdefault(parent, []).append(node)
        return dict(sorted(families.items()))

    @property
    def width(self) -> int:
        """The most children of a parent."""
        return max(map(len, self.families.values()), default=0)

    def tables(self, device: torch.device) -> tuple[Tensor, ...]:
        """The tensors of `arguments.TreeTables`; the first call on a device copies them there."""
        return _tables(self, device)


@cache
def _tables(tree: Tree, device: torch.device) -> tuple[Tensor, ...]:
    families = tree.families
    places = {parent: place for place, parent in enumerate(families)}
    lists: tuple[Sequence[object], ...] = (
        tree.parents,
        [families[parent].index(node) for node, parent in enumerate(tree.parents)],
        tree.depths,
        [places.get(parent, 0) for parent in range(-1, len(tree.parents))],
        [parent + 1 for parent in families],
        [children + [-1] * (tree.width - len(children)) for children in families.values()],
    )
    return tuple(torch.tensor(each, dtype=torch.int32, device=device) for each in lists)
