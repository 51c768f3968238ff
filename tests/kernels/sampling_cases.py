"""Calls of sampling and acceptance that several tests share, and what NumPy's definition says of them.

Shapes: N rows, B sequences, V vocabulary, M nodes, J draws.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_eff.bench.interpreted import patched_once
from lit_eff.kernels.sampling import Tree, call
from lit_eff.kernels.sampling.plan import Plan
from lit_eff.runtime import trees
from lit_eff.runtime.fixed_point import Weights, draw_without_replacement, kept_weights
from lit_eff.runtime.random_numbers import Purpose, random_word
from lit_eff.runtime.sampling import SamplingParams
from lit_eff.runtime.trees import accept_tree_exactly

FORMS = ("kernels", "reference")


@contextmanager
def running(form: str, block: int = 64) -> Iterator[None]:
    """Small blocks in the interpreter, or plain PyTorch."""
    with (
        mock.patch.object(call, "plan_of", return_value=Plan(block, 4)),
        mock.patch("lit_eff.kernels.sampling.operator.INTERPRETED", form == "kernels"),
        patched_once(),
    ):
        yield


TREES = {
    "one": Tree((-1,)),
    "chain": Tree.chain(4),
    "siblings": Tree((-1,) * 5),
    "two levels": Tree((-1, -1, 0, 0, 1, 1, 1)),
    "uneven": Tree((-1, -1, 1, -1, 1, 2, 2, 2)),
}


@dataclass(frozen=True)
class SamplingCase:
    """Sizes and the truncations that are on; ``spread`` is how far logits lie apart."""

    rows: int = 5
    vocabulary: int = 333
    top_k: bool = False
    top_p: bool = False
    min_p: bool = False
    spread: float = 4.0
    ties: bool = True

    def generator(self) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(str(self).encode()))

    def logits(self, rng: np.random.Generator, rows: int) -> NDArray[np.float32]:
        logits_NV = self.spread * rng.normal(size=(rows, self.vocabulary))
        return (np.round(4 * logits_NV) / 4 if self.ties else logits_NV).astype(np.float32)

    def parameters(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """Different ones for every row, off and greedy among them."""

        def some(values: list[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(rng.choice(values, self.rows)).to(dtype)

        chosen = {
            "temperature": some([0.0, 0.3, 1.0, 1.0, 4.0], torch.float32),
            "seed": torch.from_numpy(rng.integers(0, 2**62, self.rows)),
            "position": torch.from_numpy(rng.integers(0, 2**34, self.rows)),
        }
        if self.top_k:
            chosen["top_k"] = some([0, 1, 2, 7, 50, 5000], torch.int32)
        if self.top_p:
            chosen["top_p"] = some([1.0, 0.97, 0.9, 0.5, 0.01], torch.float32)
        if self.min_p:
            chosen["min_p"] = some([0.0, 0.02, 0.3, 1.0], torch.float32)
        return chosen


FEATURES: list[dict[str, Any]] = [
    {},
    {"top_k": True},
    {"top_p": True},
    {"min_p": True},
    {"top_k": True, "top_p": True, "min_p": True},
]


def params_of(chosen: dict[str, Tensor], row: int) -> SamplingParams:
    """NumPy's parameters of one row."""
    values = {name: each[row].item() for name, each in chosen.items() if name not in ("seed", "position")}
    return SamplingParams(**{**values, "top_k": values.get("top_k") or None})  # type: ignore[arg-type]


def numpy_weights(logits_V: NDArray[np.float32], chosen: dict[str, Tensor], row: int) -> Weights:
    return kept_weights(logits_V, params_of(chosen, row))


def numpy_sample(
    logits_NV: NDArray[np.float32], chosen: dict[str, Tensor], draws: int = 1, purpose: str = "target"
) -> list[list[int]]:
    """Tokens of each row, by the definition."""
    found = []
    for row, logits_V in enumerate(logits_NV):
        where = (int(chosen["seed"][row]), int(chosen["position"][row]), Purpose[purpose.upper()])
        words = [random_word(*where, slot) for slot in range(draws)]
        found.append(draw_without_replacement(numpy_weights(logits_V, chosen, row), words))
    return found


@dataclass(frozen=True)
class Drafted:
    """Logits of a tree's rows and the tokens drafted from them."""

    tree: Tree
    target_BUV: NDArray[np.float32]
    draft_BRV: NDArray[np.float32]
    drafts_BM: NDArray[np.int64]

    def accepted(self, chosen: dict[str, Tensor], *, sampled: bool = True) -> list[tuple[list[int], int]]:
        """Kept nodes and next token of each sequence, by the definition."""
        found = []
        for b, drafts_M in enumerate(self.drafts_BM):

            def words(depth: int, purpose: Purpose, slot: int, b: int = b) -> int:
                return random_word(int(chosen["seed"][b]), int(chosen["position"][b]) + depth, purpose, slot)

            weights = partial(numpy_weights, chosen=chosen, row=b)
            target = [weights(logits_V) for logits_V in self.target_BUV[b]]
            draft = [weights(logits_V) for logits_V in self.draft_BRV[b]] if sampled else None
            shape = trees.Tree(self.tree.parents)
            found.append(accept_tree_exactly(target, draft, drafts_M.tolist(), shape, words))
        return found


def drafted(
    case: SamplingCase, tree: Tree, chosen: dict[str, Tensor], rng: np.random.Generator, near: float = 0.5
) -> Drafted:
    """Draft logits ``near`` the target's, and tokens drawn from them, as many as there are."""
    nodes, parents = len(tree.parents), list(tree.families)
    target_BUV = case.logits(rng, case.rows * (nodes + 1)).reshape(case.rows, nodes + 1, -1)
    noise_BRV = near * rng.normal(size=(case.rows, len(parents), case.vocabulary))
    draft_BRV = (target_BUV[:, [parent + 1 for parent in parents]] + noise_BRV).astype(np.float32)
    drafts_BM = np.full((case.rows, nodes), -1, np.int64)
    for b in range(case.rows):
        for r, parent in enumerate(parents):
            if parent >= 0 and drafts_BM[b, parent] < 0:
                continue
            children = tree.families[parent]
            depth = 0 if parent < 0 else tree.depths[parent] + 1
            where = (int(chosen["seed"][b]), int(chosen["position"][b]) + depth, Purpose.DRAFT)
            words = [random_word(*where, slot) for slot in range(len(children))]
            weights_V = numpy_weights(draft_BRV[b, r], chosen, b)
            drafts_BM[b, children] = draw_without_replacement(weights_V, words)
    return Drafted(tree, target_BUV, draft_BRV, drafts_BM)
