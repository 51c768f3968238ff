"""Tokens or rows of the output matrix dealt out over a process group.

Shapes: n tokens of a chunk, P ranks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lit_eff.kernels.cross_entropy.call import STATES, Options


class VocabularyShard(NamedTuple):
    """Which rows of the output matrix this rank holds: those from ``start``, of ``size`` on all ranks."""

    group: dist.ProcessGroup
    start: int
    size: int


def group_of(name: str) -> Any:
    """The process group of that name (PyTorch operators take names, not groups)."""
    resolve: Any = dist.distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
    return resolve(name)


def sum_over(tensor: Tensor, group: str | None) -> None:
    """In place; nothing without a group."""
    if group is not None:
        dist.all_reduce(tensor, group=group_of(group))


def merge_shards(state_7n: Tensor, options: Options) -> None:
    """Replace this shard's statistics of the rows by those of the whole vocabulary: one collective.

    Every rank joins the same numbers in the same order, so all hold the same bits.
    """
    assert options.vocabulary_group is not None
    group = group_of(options.vocabulary_group)
    mine_7n = state_7n.contiguous()
    gathered_P7n = mine_7n.new_empty(dist.get_world_size(group), *mine_7n.shape)
    dist.all_gather(list(gathered_P7n.unbind()), mine_7n, group=group)
    state_7n.copy_(merged(gathered_P7n, options.temperature))


def merged(shards_P7n: Tensor, temperature: float) -> Tensor:
    """Statistics of the whole row from its shards', (7, n)."""
    part = dict(zip(STATES, shards_P7n.unbind(1), strict=True))
    top_n = part["top"].amax(0)
    apart_Pn = part["top"] - top_n
    # Of several shards with the maximum, the one with the lowest column.
    best_n = torch.where(apart_Pn == 0, part["best"], torch.inf).amin(0)
    whole = {
        "top": top_n,
        "best": best_n,
        "target": part["target"].sum(0),
        "total": (part["total"] * torch.exp(apart_Pn)).sum(0),
        "sum": part["sum"].sum(0),
        "hot": (part["hot"] * torch.exp(apart_Pn / temperature)).sum(0),
        "cross": part["cross"].sum(0),
    }
    return torch.stack([whole[name] for name in STATES])
