"""The shape of a tree of drafts, and the tables that kernels read it from.

Shapes: M nodes, R parents, C children of a parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

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
    depths: tuple[int, ...] = field(init=False, repr=False, compare=False)  # 0 for the root's children
    depth: int = field(init=False, repr=False, compare=False)  # the most nodes on a path
    families: dict[int, list[int]] = field(init=False, repr=False, compare=False)  # a parent's children,
    width: int = field(init=False, repr=False, compare=False)  # the most of them; places are draft rows

    def __post_init__(self) -> None:
        parents = tuple(self.parents)
        if len(parents) > MAX_NODES:
            raise UserError(f"a tree of {len(parents)} nodes; expected at most {MAX_NODES}")
        depths: list[int] = []
        families: dict[int, list[int]] = {}
        for node, parent in enumerate(parents):
            if not -1 <= parent < node:
                raise UserError(f"node {node} has parent {parent}; expected -1 (the root) to {node - 1}")
            depths.append(0 if parent < 0 else depths[parent] + 1)
            families.setdefault(parent, []).append(node)
        found = {
            "parents": parents,
            "depths": tuple(depths),
            "depth": max([-1, *depths]) + 1,
            "families": dict(sorted(families.items())),
            "width": max([0, *[len(children) for children in families.values()]]),
        }
        for name, value in found.items():  # now, and not when asked: torch.compile traces what asks
            object.__setattr__(self, name, value)

    @classmethod
    def chain(cls, length: int) -> Tree:
        """Each node the only child of the one before."""
        return cls(tuple(range(-1, length - 1)))

    def tables(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The tensors of `arguments.TreeTables`; the first call on a device copies them there."""
        return _tables(self, device)


@cache
def _tables(tree: Tree, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
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
    parents, ranks, depths, rows, roots, children = (
        torch.tensor(each, dtype=torch.int32, device=device) for each in lists
    )
    return parents, ranks, depths, rows, roots, children
