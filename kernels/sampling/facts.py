"""What the bytes of sampling and acceptance depend on, found in logits and drafts by plain PyTorch.

The kernels count in bins; sorted tokens and running sums give the same borders, independently.

Shapes: N rows, B sequences, V vocabulary, J draws, M nodes, R parents, C children of a parent, D depth.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_eff.kernels.sampling.accept_model import Walk
from lit_eff.kernels.sampling.call import Parameters
from lit_eff.kernels.sampling.io_model import Row
from lit_eff.kernels.sampling.plan import BINS
from lit_eff.kernels.sampling.reference import (
    DEAD,
    PURPOSES,
    accept_tree_reference,
    distances,
    kept_weights,
    sample_reference,
    weights_of,
)
from lit_eff.kernels.sampling.tree import Tree

FINE_BITS = BINS.bit_length() - 1  # of a distance, below its coarse bin


def spread(parameters: Parameters, each: int) -> Parameters:
    """A sequence's for each of its rows."""
    tensors: dict[str, Any] = {
        name: of if of is None else of.repeat_interleave(each) for name, of in vars(parameters).items()
    }
    return Parameters(**tensors)


def _tokens(logits_NV: Tensor, own: Parameters, draws: int, purpose: int) -> Tensor:
    """Drawn by the reference, (N, J)."""
    truncations = (own.top_k, own.top_p, own.min_p)
    return sample_reference(logits_NV, own.temperature, *truncations, own.seed, own.position, draws, purpose)[
        0
    ]


def rows_of(
    logits_NV: Tensor, parameters: Parameters, *, draft: bool = False, draws: int = 0, purpose: int = 0
) -> list[Row]:
    """A row's sequence follows from how many rows each has; ``draws`` tokens are drawn from it."""
    rows, sequences = logits_NV.shape[0], len(parameters.seed)
    each = rows // sequences
    own = spread(parameters, each)
    drawn: list[list[int]] = [[]] * rows
    if draws:
        drawn = _tokens(logits_NV, own, draws, purpose).tolist()
    z_NV = logits_NV.float()
    sound_N = z_NV.amax(1).isfinite()
    sorted_NV = distances(torch.where(sound_N[:, None], z_NV, 0.0), own.temperature).sort(1).values
    sums_NV = weights_of(sorted_NV).cumsum(1)
    return [
        _row(
            Row(draft, n, n // each, drawn=tuple(token for token in drawn[n] if token >= 0)),
            sorted_NV[n],
            sums_NV[n],
            0 if own.top_k is None else int(own.top_k[n]),
            1.0 if own.top_p is None else float(own.top_p[n]),
            bool(sound_N[n]) and float(own.temperature[n]) != 0.0,
        )
        for n in range(rows)
    ]


def _row(row: Row, sorted_V: Tensor, sums_V: Tensor, top_k: int, top_p: float, samples: bool) -> Row:
    """With its borders; ``samples``: it is sound and not greedy."""
    if not samples or (top_k <= 0 and top_p >= 1.0):
        return row
    alive = int((sorted_V < DEAD).sum())
    left = min(top_k, alive) if top_k > 0 else alive  # tokens, by top-k
    row = row._replace(alive=alive)

    def in_bin(coarse: int) -> int:
        return int((sorted_V[:alive] >> FINE_BITS == coarse).sum())

    if left < alive:
        border = int(sorted_V[left - 1])
        coarse = border >> FINE_BITS
        row = row._replace(count_bin=coarse, count_fine=border & (BINS - 1), counted=in_bin(coarse))
    if top_p < 1.0:
        goal = max(int(top_p * float(sums_V[left - 1])), 1)
        place = int(torch.searchsorted(sums_V[:left].contiguous(), goal))
        row = row._replace(masses=True, massed=in_bin(int(sorted_V[place]) >> FINE_BITS))
    return row


def drafts_of(draft_NV: Tensor, parameters: Parameters, tree: Tree, stray: float) -> Tensor:
    """Drafts (B, M): children drawn from their parent's row, but a share ``stray`` that is any number from -1
    to V, so absent, out of the vocabulary, an elder sibling's, or not to be drawn.
    """
    batch, vocabulary = len(parameters.seed), draft_NV.shape[1]
    token_NC = _tokens(draft_NV, spread(parameters, len(tree.families)), tree.width, PURPOSES["draft"])
    drafts_BM = torch.full((batch, len(tree.parents)), -1, dtype=torch.int64, device=draft_NV.device)
    for r, children in enumerate(tree.families.values()):
        drafts_BM[:, children] = token_NC.view(batch, -1, tree.width)[:, r, : len(children)]
    any_BM, strays_BM = (
        torch.randint(-1, vocabulary + 1, drafts_BM.shape),
        torch.rand(drafts_BM.shape) < stray,
    )
    return torch.where(strays_BM.to(drafts_BM.device), any_BM.to(drafts_BM.device), drafts_BM)


def walks_of(
    target_NV: Tensor, draft_NV: Tensor | None, drafts_BM: Tensor, tree: Tree, parameters: Parameters
) -> list[Walk]:
    """What becomes of each sequence's drafts, by the reference."""
    vocabulary = target_NV.shape[1]
    kept_BD, count_B, next_B = accept_tree_reference(
        target_NV, draft_NV, drafts_BM, tree, *vars(parameters).values()
    )
    kept = [nodes[:count] for nodes, count in zip(kept_BD.tolist(), count_B.tolist(), strict=True)]
    able_BM = drafts_BM >= 0
    if draft_NV is not None:
        able_BM = _could_be_drawn(draft_NV, drafts_BM, tree, parameters)
    walks: list[Walk] = []
    for drafts, able, nodes, token in zip(
        drafts_BM.tolist(), able_BM.tolist(), kept, next_B.tolist(), strict=True
    ):
        drawn = list(zip(tree.parents, drafts, strict=True))
        own = [
            each[1] if 0 <= each[1] < vocabulary and each not in drawn[:m] else None
            for m, each in enumerate(drawn)
        ]
        tested = [can and (each is not None or draft_NV is None) for can, each in zip(able, own, strict=True)]
        walks.append(Walk(own, tested, nodes[-1] if nodes else -1, token))
    return walks


def _could_be_drawn(draft_NV: Tensor, drafts_BM: Tensor, tree: Tree, parameters: Parameters) -> Tensor:
    """Whether a draft's token has a weight in its parent's row, (B, M)."""
    own = spread(parameters, len(tree.families))
    weights_NV = kept_weights(draft_NV, own.temperature, own.top_k, own.top_p, own.min_p)
    weights_BRV = weights_NV.view(len(drafts_BM), len(tree.families), -1)
    rows = [list(tree.families).index(parent) for parent in tree.parents]
    tokens_BM1 = drafts_BM.clamp(0, draft_NV.shape[1] - 1)[:, :, None]
    return weights_BRV[:, rows].gather(2, tokens_BM1)[:, :, 0] > 0
