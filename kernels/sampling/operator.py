"""Sampling and acceptance as PyTorch operators, for torch.compile, fake tensors and CUDA graphs.

Needs Triton; :mod:`lit_eff.kernels.sampling.interface` checks arguments and calls them.
Shapes: N rows, B sequences, V vocabulary, M nodes, J draws, D depth.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from lit_eff.kernels.sampling.call import Parameters, Selection, accept_launches, sample_launches
from lit_eff.kernels.sampling.penalty import Penalties, penalty_launch
from lit_eff.kernels.sampling.select import peak_kernel
from lit_eff.kernels.sampling.tree import Tree
from lit_eff.profiling.launch import Launch

# Triton reads TRITON_INTERPRET when a kernel is decorated, that is when this package was imported.
INTERPRETED = not isinstance(peak_kernel, triton.JITFunction)


def _run(launches: Iterable[Launch], device: torch.device) -> None:
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for launch in launches:
            launch.run()


@torch.library.custom_op("lit_eff::sample", mutates_args=())
def sample(
    logits_NV: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seed: Tensor,
    position: Tensor,
    draws: int,
    purpose: int,
) -> tuple[Tensor, Tensor]:
    """Tokens and their log-probabilities, (N, J) each."""
    token_NJ, logprob_NJ = _empty_draws(logits_NV, draws)
    if token_NJ.numel() > 0:
        parameters = Parameters(temperature, top_k, top_p, min_p, seed, position)
        selection = Selection(logits_NV, None, parameters)
        _run(sample_launches(selection, token_NJ, logprob_NJ, purpose), logits_NV.device)
    return token_NJ, logprob_NJ


def _empty_draws(logits_NV: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    size = (logits_NV.shape[0], draws)
    return logits_NV.new_empty(size, dtype=torch.int64), logits_NV.new_empty(size, dtype=torch.float32)


@sample.register_fake
def _(logits_NV: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return _empty_draws(logits_NV, others[-2])


@torch.library.custom_op("lit_eff::accept_tree", mutates_args=())
def accept_tree(
    target_NV: Tensor,
    draft_NV: Tensor | None,
    drafts_BM: Tensor,
    parents: list[int],
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seed: Tensor,
    position: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Kept nodes (B, D), how many (B,), and the tokens after them (B,)."""
    tree = Tree(tuple(parents))
    kept_BD, count_B, next_B = _empty_acceptance(drafts_BM, tree.depth)
    if drafts_BM.shape[0] > 0:
        selection = Selection(
            target_NV, draft_NV, Parameters(temperature, top_k, top_p, min_p, seed, position)
        )
        launches = accept_launches(selection, drafts_BM, tree, kept_BD, count_B, next_B)
        _run(launches, target_NV.device)
    return kept_BD, count_B, next_B


def _empty_acceptance(drafts_BM: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    batch = drafts_BM.shape[0]
    return (
        drafts_BM.new_empty((batch, depth), dtype=torch.int64),
        drafts_BM.new_empty(batch, dtype=torch.int32),
        drafts_BM.new_empty(batch, dtype=torch.int64),
    )


@accept_tree.register_fake
def _(target_NV: Tensor, draft_NV: Tensor | None, drafts_BM: Tensor, *others: Any) -> Any:
    return _empty_acceptance(drafts_BM, Tree(tuple(others[0])).depth)


@torch.library.custom_op("lit_eff::processed_logits", mutates_args=())
def processed_logits(
    logits_NV: Tensor,
    history_N: Tensor | None,
    bias_HV: Tensor | None,
    counts_HV: Tensor | None,
    prompt_HV: Tensor | None,
    drafted_ND: Tensor | None,
    repetition_H: Tensor | None,
    presence_H: Tensor | None,
    frequency_H: Tensor | None,
) -> Tensor:
    """(N, V) float32."""
    out_NV = logits_NV.new_empty(logits_NV.shape, dtype=torch.float32)
    if out_NV.numel() > 0:
        penalties = Penalties(
            history_N, bias_HV, counts_HV, prompt_HV, drafted_ND, repetition_H, presence_H, frequency_H
        )
        _run([penalty_launch(logits_NV, penalties, out_NV)], logits_NV.device)
    return out_NV


@processed_logits.register_fake
def _(logits_NV: Tensor, *_: Any) -> Tensor:
    return logits_NV.new_empty(logits_NV.shape, dtype=torch.float32)
