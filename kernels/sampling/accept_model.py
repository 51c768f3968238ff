"""The exact bytes that acceptance requests from HBM, program by program: arithmetic.

What it asks for depends on the drafts: which are there and could have been drawn, and which are kept. The
model takes that of each sequence as `Walk`; tensor names are the kernels' arguments without ``p_``.

Shapes: B sequences, V vocabulary, M nodes, R parents, C children of a parent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from lit_eff.kernels.requests import Requests, span
from lit_eff.kernels.sampling.io_model import WIDE_BYTES, SamplingModel
from lit_eff.kernels.sampling.tree import Tree
from lit_eff.profiling.modelled import STATISTIC_BYTES, Traffic


class Walk(NamedTuple):
    """What becomes of one sequence.

    Args:
        tokens: a node each; None where it is absent, outside the vocabulary or an elder sibling's.
        tested: which nodes are: those that the draft could have drawn, or without draft rows all present.
        node: the last one kept, -1 for the root.
        token: the one after it, -1 where its row is broken.
    """

    tokens: Sequence[int | None]
    tested: Sequence[bool]
    node: int
    token: int


@dataclass(frozen=True)
class AcceptModel:
    """``sampling`` models the passes over the rows, the target's first; with ``sampled`` there are the
    draft's after them.
    """

    sampling: SamplingModel
    tree: Tree
    walks: Sequence[Walk]
    sampled: bool

    @cached_property
    def parents(self) -> list[int]:
        """By their draft row."""
        return list(self.tree.families)

    @property
    def nodes(self) -> int:
        return len(self.tree.parents)

    def target_row(self, b: int, node: int) -> int:
        return b * (self.nodes + 1) + node + 1

    def draft_row(self, b: int, r: int) -> int:
        return len(self.walks) * (self.nodes + 1) + b * len(self.parents) + r

    def rank(self, node: int) -> int:
        return self.tree.families[self.tree.parents[node]].index(node)

    def _place(self, parent: int) -> int:
        """Its draft row; 0 for a leaf."""
        return self.parents.index(parent) if parent in self.tree.families else 0

    def _read_table(self, to: Requests, name: str, index: int, times: int = 1) -> None:
        to.read(name, span(index, 1, STATISTIC_BYTES), times)

    def _read_child(self, to: Requests, r: int, step: int, times: int = 1) -> None:
        self._read_table(to, "children", r * self.tree.width + step, times)

    def _read_node(self, to: Requests, name: str, b: int, node: int, times: int = 1) -> None:
        """A node's number; the drafts' weights stand behind the targets' in one tensor."""
        behind = len(self.walks) if name == "draft_weight" else 0
        to.read(name, span((behind + b) * self.nodes + node, 1, WIDE_BYTES), times)

    def _read_kept(self, to: Requests, n: int, i_v: int) -> None:
        """As `accept.kept_block`."""
        self.sampling.read_kept(to, n, i_v)
        to.read("equal", span(n * self.sampling.blocks, i_v, STATISTIC_BYTES))

    def lookup(self) -> Traffic:
        """Each draft and its elders; of one that counts, the block of its token in each row."""
        to = Requests()
        for b, walk in enumerate(self.walks):
            for m, (parent, token) in enumerate(zip(self.tree.parents, walk.tokens, strict=True)):
                self._read_node(to, "drafts", b, m)
                self._read_table(to, "parents", m)
                for elder in range(m):
                    self._read_node(to, "drafts", b, elder)
                    self._read_table(to, "parents", elder)
                for name in ("target_weight", "draft_weight"):
                    to.writes[name] += WIDE_BYTES
                if token is None:
                    continue
                i_v = token // self.sampling.plan.block
                self._read_kept(to, self.target_row(b, parent), i_v)
                if self.sampled:
                    self._read_table(to, "draft_rows", parent + 1)
                    self._read_kept(to, self.draft_row(b, self._place(parent)), i_v)
        return to.traffic()

    def _residual(self, to: Requests, b: int, r: int, u: int, i_v: int, steps: int) -> None:
        """As `accept.residual_block`."""
        self._read_kept(to, b * (self.nodes + 1) + u, i_v)
        if steps == 0:
            return
        children = self.tree.families[self.parents[r]]
        if self.sampled:
            self.sampling.read_state(to, b * (self.nodes + 1) + u, "total")
            self.sampling.read_state(to, self.draft_row(b, r), "total")
            self._read_kept(to, self.draft_row(b, r), i_v)
        for step in range(steps):
            child = children[step]
            self._read_child(to, r, step)
            self._read_node(to, "draft_weight" if self.sampled else "drafts", b, child)
            if self.sampled and self.walks[b].tested[child] and step < steps - 1:
                self._read_total(to, b, r, step)

    def _read_total(self, to: Requests, b: int, r: int, step: int) -> None:
        place = (b * len(self.parents) + r) * self.tree.width + step
        to.read("residual_total", span(place, 1, WIDE_BYTES))

    def residual(self, step: int) -> Traffic:
        """What is left of each parent's row once child ``step`` is rejected, added up where others follow."""
        to = Requests()
        for b, walk in enumerate(self.walks):
            for r, parent in enumerate(self.parents):
                children, blocks = self.tree.families[parent], self.sampling.blocks
                self._read_child(to, r, step + 1, blocks)
                if step + 1 >= len(children):
                    continue
                self._read_child(to, r, step, blocks)
                self._read_node(to, "draft_weight", b, children[step], blocks)
                if not walk.tested[children[step]]:
                    continue
                self._read_table(to, "target_rows", r, blocks)
                for i_v in range(blocks):
                    self._residual(to, b, r, parent + 1, i_v, step + 1)
                to.atomics["residual_total"] += blocks * WIDE_BYTES
        return to.traffic()

    def accept(self) -> Traffic:
        """Every node's numbers, and of its elders what they leave."""
        to = Requests()
        for b, walk in enumerate(self.walks):
            for m, parent in enumerate(self.tree.parents):
                for name in ("parents", "ranks", "depths"):
                    self._read_table(to, name, m)
                self._read_table(to, "draft_rows", parent + 1)
                for name in ("target_weight", "draft_weight", "drafts"):
                    self._read_node(to, name, b, m)
                self.sampling.read_state(to, self.target_row(b, parent), "total")
                r = self._place(parent)
                if self.sampled:
                    self.sampling.read_state(to, self.draft_row(b, r), "total")
                for step in range(self.rank(m)) if walk.tested[m] else ():
                    elder = self.tree.families[parent][step]
                    self._read_child(to, r, step)
                    self._read_node(to, "draft_weight" if self.sampled else "target_weight", b, elder)
                    if self.sampled:
                        self._read_total(to, b, r, step)
            for name in ("position", "seed"):
                to.read(name, span(b, 1, WIDE_BYTES))
            to.writes["kept"] += self.tree.depth * WIDE_BYTES
            to.writes["count"] += STATISTIC_BYTES
            to.writes["walk"] += 2 * STATISTIC_BYTES
        return to.traffic()

    def next(self) -> Traffic:
        """Every block of the last kept node's row, after its rejections; one again, for the token in it. A
        row without a token reads both of its sums.
        """
        to, blocks = Requests(), self.sampling.blocks
        for b, walk in enumerate(self.walks):
            children = self.tree.families.get(walk.node, [])
            steps = max([self.rank(m) + 1 for m in children if walk.tested[m]], default=0)
            u, r, times = walk.node + 1, self._place(walk.node), blocks
            to.read("walk", span(2 * b, 2, STATISTIC_BYTES), times)
            self._read_table(to, "draft_rows", u, times)
            for i_v in range(blocks):
                self._residual(to, b, r, u, i_v, steps)
            to.writes["sums"] += 2 * blocks * WIDE_BYTES
            to.atomics["done"] += blocks * STATISTIC_BYTES
            broken = walk.token < 0
            to.read("sums", span(2 * b * blocks, blocks * (1 + broken), WIDE_BYTES))
            if not broken:
                for name, size in (
                    ("position", WIDE_BYTES),
                    ("seed", WIDE_BYTES),
                    ("count", STATISTIC_BYTES),
                ):
                    to.read(name, span(b, 1, size))
                self._residual(to, b, r, u, walk.token // self.sampling.plan.block, steps)
            to.writes["next"] += WIDE_BYTES
        return to.traffic()

    def launches(self) -> Iterator[Traffic]:
        """Of all launches in order."""
        yield from self.sampling.borders()
        yield self.sampling.draw(0)
        yield self.lookup()
        if self.sampled:
            yield from (self.residual(step) for step in range(self.tree.width - 1))
        yield self.accept()
        yield self.next()
