"""Speculative acceptance over a tree of drafts, of which a chain is the plainest.

Recursive rejection (SpecInfer, Miao et al. 2023; Sequoia, Chen et al. 2024): the children of the newest kept
token are tested one after the other, in the order they were drawn. A child x is kept with probability
min(1, p(x) / q(x)); when it is not, p becomes norm(max(0, p - q)), and q loses x and is renormalised. When no
child is kept, the next token is drawn from what p has become. Children of one parent are drawn from q without
replacement, or by any rule that looks at no random number: then q is a one-hot, and losing x is all that
happens to p. What is emitted is distributed as the target's own tokens; for one child a node this is
Leviathan's algorithm 1.

Neither the shape of the tree nor what is tested may depend on the tokens drawn. A token of -1 is a child
that is not there, and one that q has no mass left for is passed over: so children drawn with replacement,
some of them twice, come out right too.

A tree is its ``parents``: that of each node, -1 for the root, which is the last token before the drafts;
parents come before children, siblings in the order drawn. Rows of the target's distribution are the root's,
then each node's. Rows of the draft's are those of the parents only, in the same order.

Shapes: V vocabulary, M nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lit_eff.errors import UserError
from lit_eff.runtime.fixed_point import Weights, draw_token
from lit_eff.runtime.random_numbers import Purpose
from lit_eff.runtime.sampling import Distribution, draw

PROBABILITY_BITS = 62  # of a probability in whole numbers
ONE = 1 << PROBABILITY_BITS


@dataclass(frozen=True)
class Tree:
    """The shape of a tree of drafts.

    Raises:
        UserError: naming the node whose parent does not come before it.
    """

    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        for node, parent in enumerate(self.parents):
            if not -1 <= parent < node:
                raise UserError(f"node {node} has parent {parent}; expected -1 (the root) to {node - 1}")

    @classmethod
    def chain(cls, length: int) -> Tree:
        return cls(tuple(range(-1, length - 1)))

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Of the root, then of each node."""
        found: list[list[int]] = [[] for _ in range(len(self.parents) + 1)]
        for node, parent in enumerate(self.parents):
            found[parent + 1].append(node)
        return tuple(map(tuple, found))

    @cached_property
    def draft_rows(self) -> dict[int, int]:
        """From a parent (-1 for the root) to its row of the draft's distributions."""
        return {parent: row for row, parent in enumerate(sorted(set(self.parents)))}


def accept_tree(
    p_rows: Sequence[Distribution],
    q_rows: Sequence[Distribution] | None,
    drafts: Sequence[int],
    tree: Tree,
    rng: np.random.Generator,
) -> tuple[list[int], int]:
    """Which nodes are kept, from the root on, and the target's own token after them.

    Args:
        p_rows: the target's distributions ``(V,)`` after the root and after each node, M + 1.
        q_rows: the distributions that each parent's children were drawn from, without replacement; ``None``
            when they were not drawn at random.
        drafts: the M tokens, -1 where there is none.
        rng: random numbers never used before.
    """
    kept: list[int] = []
    while True:
        parent = kept[-1] if kept else -1
        p_V, found = p_rows[parent + 1], False
        q_V = q_rows[tree.draft_rows[parent]] if q_rows is not None and tree.children[parent + 1] else None
        for node in tree.children[parent + 1]:
            token = drafts[node]
            if token < 0 or (q_V is not None and q_V[token] == 0):
                continue
            test_V = np.eye(1, len(p_V), token)[0] if q_V is None else q_V
            if rng.random() * test_V[token] < p_V[token]:
                kept.append(node)
                found = True
                break
            residual_V = np.maximum(p_V - test_V, 0.0) if q_V is not None else np.where(test_V > 0, 0.0, p_V)
            if residual_V.any():  # rounding leaves none only where p and q are equal to the last bits
                p_V = residual_V / residual_V.sum()
            if q_V is not None:
                q_V = np.where(np.arange(len(q_V)) == token, 0.0, q_V)
                if q_V.any():
                    q_V = q_V / q_V.sum()
        if not found:
            return kept, draw(p_V, rng)


def probabilities(weights_V: Weights, total: int) -> Weights:
    """Weights of that total as multiples of 2^-62, rounded in float64 and then down."""
    return (weights_V.astype(np.float64) * (float(ONE) / float(total))).astype(np.int64)


def accept_tree_exactly(
    target_weights: Sequence[Weights],
    draft_weights: Sequence[Weights] | None,
    drafts: Sequence[int],
    tree: Tree,
    words: Callable[[int, Purpose, int], int],
) -> tuple[list[int], int]:
    """:func:`accept_tree` in whole numbers, which every device computes alike, bit for bit.

    Args:
        target_weights, draft_weights: kept weights ``(V,)`` in place of distributions.
        words: the random number of a depth (0 for the root's children), purpose and slot; a child's slot is
            its place among its siblings.

    Returns:
        The kept nodes, and the token after them; -1 where the target has no weights.
    """
    kept: list[int] = []
    while True:
        parent = kept[-1] if kept else -1
        children = tree.children[parent + 1]
        left_V = target_weights[parent + 1]
        q_V = (
            draft_weights[tree.draft_rows[parent]].copy() if draft_weights is not None and children else None
        )
        found = False
        for slot, node in enumerate(children):
            token, total = drafts[node], int(left_V.sum())
            if token < 0 or total == 0 or (q_V is not None and q_V[token] == 0):
                continue
            p_V = probabilities(left_V, total)
            if q_V is None:
                chance = ONE
            else:
                test_V = probabilities(q_V, int(q_V.sum()))
                chance = int(test_V[token])
            if words(len(kept), Purpose.ACCEPT, slot) * chance >> 64 < p_V[token]:
                kept.append(node)
                found = True
                break
            if q_V is None:
                residual_V = np.where(np.arange(len(left_V)) == token, 0, left_V)
            else:
                residual_V = np.maximum(p_V - test_V, 0)
                q_V[token] = 0
            if residual_V.any():  # else p and q are equal to the last bits
                left_V = residual_V
        if not found:
            return kept, draw_token(left_V, words(len(kept), Purpose.TARGET, 0))
