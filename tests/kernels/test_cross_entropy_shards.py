"""Tokens, or the vocabulary, dealt out over two processes: the loss and gradients of one process."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lit_eff.errors import UserError
from lit_eff.kernels.cross_entropy import multi_exit_cross_entropy
from lit_eff.kernels.cross_entropy.shards import VocabularyShard, merged
from tests.kernels.loss_cases import EVERYTHING, LossCase
from tests.parallel.ranks import run_ranks

pytestmark = [pytest.mark.usefixtures("interpreter"), pytest.mark.distributed]

CASES = [
    LossCase(exits=2),
    LossCase(shared=False, biased=(0, 2), token_weights=True, options=EVERYTHING),
    LossCase(exits=1, vocabulary=3, ignored=2),
]


def close(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=1e-6)


def summed(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    dist.all_reduce(tensor)
    return tensor


def deal_tokens(case: LossCase) -> None:
    dist.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]))
    inputs = case.draw(torch.float32)
    expected = inputs.ours()
    gradients = inputs.gradients(expected, 3.0)
    own = slice(0, 8) if dist.get_rank() == 0 else slice(8, None)  # shares of unlike size
    inputs.hiddens = [hidden[own].detach().requires_grad_() for hidden in inputs.hiddens]
    inputs.targets_N = inputs.targets_N[own]
    if inputs.token_weights_N is not None:
        inputs.token_weights_N = inputs.token_weights_N[own]
    losses = inputs.ours(tokens_group=dist.group.WORLD, chunk=5)
    for one, other in zip(losses, expected, strict=True):
        close(one, other)
    for index, (one, other) in enumerate(zip(inputs.gradients(losses, 3.0), gradients, strict=True)):
        close(*((one, other[own]) if index < case.exits else (summed(one), other)))
    dist.destroy_process_group()


def deal_vocabulary(case: LossCase) -> None:
    dist.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]))
    inputs = case.draw(torch.float32)
    expected = inputs.ours()
    gradients = inputs.gradients(expected, 3.0)
    border = case.vocabulary // 3  # shares of unlike size
    own = slice(0, border) if dist.get_rank() == 0 else slice(border, None)
    inputs.matrices = [matrix[own].detach().requires_grad_() for matrix in inputs.matrices]
    inputs.biases = [bias[own].detach().requires_grad_() for bias in inputs.biases]
    world = dist.group.WORLD
    assert world is not None
    losses = inputs.ours(vocabulary=VocabularyShard(world, own.start, case.vocabulary), chunk=5)
    for one, other in zip(losses, expected, strict=True):
        close(one, other)
    for index, (one, other) in enumerate(zip(inputs.gradients(losses, 3.0), gradients, strict=True)):
        close(one, other if index < case.exits else other[own])
    with pytest.raises(UserError, match="one group"):
        inputs.ours(vocabulary=VocabularyShard(world, own.start, case.vocabulary), tokens_group=world)
    with pytest.raises(UserError, match="do not lie in a vocabulary"):
        inputs.ours(vocabulary=VocabularyShard(world, case.vocabulary, case.vocabulary))
    dist.destroy_process_group()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens_over_two_processes(case: LossCase) -> None:
    run_ranks(deal_tokens, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vocabulary_over_two_processes(case: LossCase) -> None:
    run_ranks(deal_vocabulary, case)


def test_the_maximum_that_comes_first_wins() -> None:
    """Shards with equal maxima: the lowest column; sums are brought to the common maximum."""
    left = torch.tensor([[1.0], [3.0], [0.5], [1.5], [2.0], [1.25], [0.1]])
    right = torch.tensor([[1.0], [7.0], [0.0], [2.0], [3.0], [1.5], [0.2]])
    state_7n = merged(torch.stack([right, left]), 2.0)
    assert state_7n[:, 0].tolist() == pytest.approx([1.0, 3.0, 0.5, 3.5, 5.0, 2.75, 0.3])
    lower = torch.cat([right[:1] - 2 * math.log(2), right[1:]])
    state_7n = merged(torch.stack([lower, left]), 2.0)
    assert state_7n[:, 0].tolist() == pytest.approx([1.0, 3.0, 0.5, 2.0, 5.0, 2.0, 0.3])


def test_no_kernels_no_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_eff.kernels.cross_entropy import operator

    monkeypatch.setattr(operator, "INTERPRETED", False)
    shard = VocabularyShard(None, 0, 10)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="need the kernels"):
        multi_exit_cross_entropy(
            [torch.randn(2, 4)], torch.randn(5, 4), torch.tensor([0, 1]), vocabulary=shard
        )
