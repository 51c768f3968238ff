"""The multi-exit loss in plain PyTorch, logits and all: the definition that the kernels are tested against.

Shapes: N tokens, C model dim, V vocabulary, E exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100


class ExitLosses(NamedTuple):
    """What :func:`multi_exit_cross_entropy` returns, in float32. Only ``loss`` has a gradient.

    The others hold one number an exit: means over the tokens that count, by the tokens' weights.
    """

    loss: Tensor  # scalar, the weighted sum over exits
    nll_E: Tensor  # cross-entropy with the targets in nats, without smoothing or z-loss
    accuracy_E: Tensor  # share of tokens whose most probable token is the target
    agreement_E: Tensor  # share of tokens whose most probable token is the last exit's
    confidence_E: Tensor  # probability of the most probable token


def token_means(targets_N: Tensor, token_weights_N: Tensor | None, ignore_index: int) -> Tensor:
    """What each token counts in a mean over tokens, not yet divided by their sum; 0 where ignored."""
    valid_N = targets_N != ignore_index
    if token_weights_N is None:
        return valid_N.to(torch.float32)
    return torch.where(valid_N, token_weights_N.to(torch.float32), 0.0)


def multi_exit_cross_entropy_reference(
    hiddens: Sequence[Tensor],
    weights: Sequence[Tensor],
    targets_N: Tensor,
    *,
    biases: Sequence[Tensor | None] | None = None,
    exit_weights: Sequence[float],
    token_weights_N: Tensor | None = None,
    ignore_index: int = IGNORED,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    distillation: float = 0.0,
    temperature: float = 1.0,
    accumulate: torch.dtype = torch.float32,
) -> ExitLosses:
    """As :func:`lit_eff.kernels.cross_entropy.multi_exit_cross_entropy`, with one entry an exit everywhere.

    Args:
        accumulate: dtype of everything, the products too.
    """
    exits = len(hiddens)
    weight_N = token_means(targets_N, token_weights_N, ignore_index).to(accumulate)
    total = weight_N.sum()
    mean_N = weight_N / torch.where(total > 0, total, 1.0)
    picked_N1 = targets_N.where(weight_N > 0, 0)[:, None]
    logits = []
    for e in range(exits):
        logits_NV = hiddens[e].to(accumulate) @ weights[e].to(accumulate).T
        if biases is not None and (bias_V := biases[e]) is not None:
            logits_NV = logits_NV + bias_V.to(accumulate)
        logits.append(logits_NV if softcap is None else softcap * torch.tanh(logits_NV / softcap))

    teacher_NV = (logits[-1].detach() / temperature).log_softmax(-1)
    last_N = logits[-1].argmax(-1)
    loss = mean_N.new_zeros(())
    statistics = []
    for e, logits_NV in enumerate(logits):
        log_p_NV = logits_NV.log_softmax(-1)
        nll_N = -log_p_NV.gather(1, picked_N1)[:, 0]
        loss_N = (1 - label_smoothing) * nll_N - label_smoothing * log_p_NV.mean(-1)
        if distillation and e < exits - 1:
            student_NV = (logits_NV / temperature).log_softmax(-1)
            kl_N = (teacher_NV.exp() * (teacher_NV - student_NV)).sum(-1)
            loss_N = (1 - distillation) * loss_N + distillation * temperature**2 * kl_N
        loss_N = loss_N + z_loss * logits_NV.logsumexp(-1).square()
        loss = loss + exit_weights[e] * (mean_N * loss_N.where(weight_N > 0, 0.0)).sum()
        top_N, best_N = log_p_NV.detach().max(-1)
        rows = (
            nll_N.detach().where(weight_N > 0, 0.0),
            best_N == targets_N,
            best_N == last_N,
            top_N.exp(),
        )
        statistics.append(torch.stack([(mean_N * row_N).sum() for row_N in rows]))
    columns = torch.stack(statistics).to(torch.float32).unbind(1)
    return ExitLosses(loss.to(torch.promote_types(accumulate, torch.float32)), *columns)
