"""Losses and statistics of several exits that read the same targets.

A language model's logits (tokens x vocabulary, for every exit) are far larger than anything else in the
model, so they are never held: :func:`chunked_exit_loss` makes a chunk of them at a time, turns it in place
into the gradient with respect to the logits, and reduces that to gradients of the hidden states and of the
output matrices during the forward pass. No logit is computed twice, and a chunk that fits the cache makes
the softmax nearly free on a CPU. On a GPU :mod:`lit_eff.kernels.cross_entropy` does the same with one kernel
between the matrix products.

Shape legend: N tokens, C model dim, V vocabulary (or labels), E exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_eff.kernels.cross_entropy import multi_exit_cross_entropy, obstacle
from lit_eff.kernels.cross_entropy.checks import position_in

IGNORED = -100

# Logits made at a time: 4 MB in float32 stay in a CPU's cache; a GPU wants larger matrix products.
CHUNK_LOGITS = {"cpu": 2**20, "cuda": 2**26}


class OutputHead(NamedTuple):
    """What turns a normed hidden state into logits: ``hidden @ weight.T + bias``, then the softcap."""

    weight_VC: Tensor
    bias_V: Tensor | None = None


@dataclass(frozen=True)
class Distillation:
    """``share`` of an intermediate exit's loss is temperature^2 * KL(last exit, detached || exit)."""

    share: float
    temperature: float = 1.0


def default_chunk(device: torch.device, width: int) -> int:
    """Tokens whose logits, ``width`` wide, are made at a time."""
    return max(1, CHUNK_LOGITS.get(device.type, CHUNK_LOGITS["cuda"]) // width)


def _accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def softcapped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def exit_loss_from_logits(
    logits: Sequence[Tensor],
    targets_N: Tensor,
    weights: Sequence[float],
    distillation: Distillation | None = None,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the exits' losses, from logits (N, V) per exit, the last exit last.

    Returns:
        The loss (scalar) and each exit's mean cross-entropy in nats (E,), detached. Targets of -100 count
        in neither.
    """
    valid_N = targets_N != IGNORED
    count = valid_N.sum().clamp(min=1)
    nll, losses = [], []
    for index, logits_NV in enumerate(logits):
        scores_NV = logits_NV.to(_accumulation(logits_NV.dtype))
        nll.append(F.cross_entropy(scores_NV, targets_N, ignore_index=IGNORED, reduction="sum") / count)
        losses.append(nll[-1])
        if distillation is not None and index < len(logits) - 1:
            share, temperature = distillation.share, distillation.temperature
            teacher_NV = (logits[-1].detach().to(scores_NV.dtype) / temperature).log_softmax(-1)
            student_NV = (scores_NV / temperature).log_softmax(-1)
            kl_N = F.kl_div(student_NV, teacher_NV, log_target=True, reduction="none").sum(-1)
            kl = (kl_N * valid_N).sum() / count
            losses[-1] = (1 - share) * nll[-1] + share * temperature**2 * kl
    total = torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()
    return total, torch.stack(nll).detach()


def chunked_exit_loss(
    hiddens: Sequence[Tensor],
    heads: Sequence[OutputHead],
    targets_N: Tensor,
    weights: Sequence[float],
    *,
    softcap: float | None = None,
    distillation: Distillation | None = None,
    chunk: int | None = None,
    columns: int | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`exit_loss_from_logits` of ``hidden @ weight.T + bias``, without holding the logits.

    On a GPU that can, :func:`lit_eff.kernels.cross_entropy.multi_exit_cross_entropy` runs. Matrix products
    run in the autocast dtype where autocast is on; the softmax and all sums are float32.

    Args:
        hiddens: normed hidden states (N, C) per exit, the last exit last.
        heads: each exit's output matrix and bias; exits may share them.
        targets_N: int64, -100 ignored.
        weights: each exit's weight.
        chunk: tokens whose logits are held at a time; the default suits the device.
        columns: rows of the output matrices that are the vocabulary; those after them round its size up, take
            no part and get a zero gradient. None for all.

    Returns:
        As :func:`exit_loss_from_logits`. Gradients can be taken once (no double backward).
    """
    if _fuses(hiddens[0]):
        losses = multi_exit_cross_entropy(
            hiddens,
            [head.weight_VC for head in heads],
            targets_N,
            bias_V=[head.bias_V for head in heads],
            exit_weights=weights,
            softcap=softcap,
            distillation=0.0 if distillation is None else distillation.share,
            temperature=1.0 if distillation is None else distillation.temperature,
            chunk=chunk,
            columns=columns,
        )
        return losses.loss, losses.nll_E
    matrices: list[Tensor] = []
    biases: list[Tensor] = []
    matrix_of, bias_of = [], []
    for head in heads:  # a shared matrix gets one gradient buffer
        matrix_of.append(position_in(matrices, head.weight_VC))
        bias_of.append(None if head.bias_V is None else position_in(biases, head.bias_V))
    if columns is not None:
        matrices, biases = [m[:columns] for m in matrices], [b[:columns] for b in biases]
    device = targets_N.device
    autocast = torch.is_autocast_enabled(device.type)
    plan = _Plan(
        matrix_of=[len(hiddens) + m for m in matrix_of],
        bias_of=[None if b is None else len(hiddens) + len(matrices) + b for b in bias_of],
        weights=list(weights),
        softcap=softcap,
        distillation=distillation,
        chunk=chunk or default_chunk(targets_N.device, matrices[0].shape[0]),
        dtype=torch.get_autocast_dtype(device.type) if autocast else hiddens[0].dtype,
    )
    with torch.autocast(device.type, enabled=False):
        total, nll_E = _ChunkedExitLoss.apply(  # type: ignore[no-untyped-call]
            plan, targets_N, *hiddens, *matrices, *biases
        )
    return total, nll_E


def _fuses(hidden: Tensor) -> bool:
    """Whether the kernels take the loss: on a GPU that they run on, but for float64."""
    return hidden.is_cuda and hidden.dtype != torch.float64 and obstacle(hidden.device) is None


@dataclass(frozen=True)
class _Plan:
    """``matrix_of`` and ``bias_of`` say, for each exit, where among the tensors its matrix and bias are."""

    matrix_of: list[int]
    bias_of: list[int | None]
    weights: list[float]
    softcap: float | None
    distillation: Distillation | None
    chunk: int
    dtype: torch.dtype


class _ChunkedExitLoss(torch.autograd.Function):
    """``tensors``: a hidden state per exit, then the distinct output matrices, then the distinct biases."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, targets_N: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        exits = len(plan.weights)
        wide = _accumulation(plan.dtype)
        wanted = ctx.needs_input_grad[2:]
        grads = [
            torch.zeros_like(tensor, dtype=wide) if needed else None
            for tensor, needed in zip(tensors, wanted, strict=True)
        ]
        narrow = [tensor.to(plan.dtype) for tensor in tensors]  # no copies without autocast
        valid_N = targets_N != IGNORED
        mean_N = valid_N.to(wide) / valid_N.sum().clamp(min=1)
        nll_E = torch.zeros(exits, dtype=wide, device=targets_N.device)
        total = torch.zeros((), dtype=wide, device=targets_N.device)

        for start in range(0, targets_N.numel(), plan.chunk):
            rows = slice(start, start + plan.chunk)
            mean_n = mean_N[rows]
            target_n = targets_N[rows].clamp(min=0)
            teacher_nV: Tensor | None = None
            for e in reversed(range(exits)):  # the last exit first: it teaches the others
                m, b = plan.matrix_of[e], plan.bias_of[e]
                logits_nV = (narrow[e][rows] @ narrow[m].T).to(wide)
                if b is not None:
                    logits_nV += tensors[b]
                logits_nV = softcapped(logits_nV, plan.softcap)
                nll_n, loss_n, gradient_nV = _loss_and_gradient(
                    logits_nV, target_n, teacher_nV, plan.distillation
                )
                nll_E[e] += nll_n @ mean_n
                total += plan.weights[e] * (loss_n @ mean_n)
                if plan.distillation is not None and e == exits - 1:
                    teacher_nV = (logits_nV / plan.distillation.temperature).log_softmax(-1)
                if plan.weights[e] == 0.0 or not any(wanted):
                    continue

                if plan.softcap is not None:
                    gradient_nV *= 1 - (logits_nV / plan.softcap).square_()
                # The tokens' weights scale the narrow factors of each product, not the wide gradient.
                scale_n = plan.weights[e] * mean_n
                product_nV = gradient_nV.to(plan.dtype)
                if (grad_hidden := grads[e]) is not None:
                    torch.mul(product_nV @ narrow[m], scale_n[:, None], out=grad_hidden[rows])
                if (grad_matrix := grads[m]) is not None:
                    scaled_nC = (narrow[e][rows] * scale_n[:, None]).to(plan.dtype)
                    _add_product(grad_matrix, product_nV.T, scaled_nC)
                if b is not None and (grad_bias := grads[b]) is not None:
                    grad_bias += scale_n @ gradient_nV

        ctx.save_for_backward(*(grad for grad in grads if grad is not None))
        ctx.wanted, ctx.dtypes = wanted, [tensor.dtype for tensor in tensors]
        ctx.mark_non_differentiable(nll_E)
        return total, nll_E

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _grad_nll: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        grads = [
            (next(saved) * grad_total).to(dtype) if needed else None
            for needed, dtype in zip(ctx.wanted, ctx.dtypes, strict=True)
        ]
        return None, None, *grads


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:  # sums stay wide though the product is narrow
        total += left @ right


def _loss_and_gradient(
    logits_nV: Tensor, target_n: Tensor, teacher_nV: Tensor | None, distillation: Distillation | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Per token: cross-entropy, the loss to train on, and that loss's gradient with respect to the logits.

    ``teacher_nV`` holds the teacher's log-probabilities at the distillation temperature; ``None`` for none.
    """
    index_n1 = target_n[:, None]
    probabilities_nV = logits_nV.softmax(-1)
    # log-sum-exp by the largest probability, which cannot underflow: it is at least 1/V.
    lse_n = logits_nV.amax(-1) - probabilities_nV.amax(-1).log()
    nll_n = lse_n - logits_nV.gather(1, index_n1)[:, 0]
    gradient_nV = probabilities_nV
    gradient_nV.scatter_add_(1, index_n1, gradient_nV.new_full(index_n1.shape, -1.0))
    if teacher_nV is None or distillation is None:
        return nll_n, nll_n, gradient_nV
    share, temperature = distillation.share, distillation.temperature
    student_nV = (logits_nV / temperature).log_softmax(-1)
    teacher_p_nV = teacher_nV.exp()
    kl_n = (teacher_p_nV * (teacher_nV - student_nV)).sum(-1)
    gradient_nV *= 1 - share
    gradient_nV.add_(student_nV.exp_().sub_(teacher_p_nV), alpha=share * temperature)
    return nll_n, (1 - share) * nll_n + share * temperature**2 * kl_n, gradient_nV


class ExitStatistics(NamedTuple):
    """What the metrics need of each exit's distribution at each token; no graph."""

    nll_EN: Tensor  # nats, 0 where the target is ignored
    prediction_EN: Tensor  # int64, the most probable token or label
    confidence_EN: Tensor  # its probability


@torch.no_grad()
def statistics_from_logits(logits: Sequence[Tensor], targets_N: Tensor) -> ExitStatistics:
    """Statistics of logits (N, V) per exit against int64 targets (N,), -100 ignored."""
    rows = []
    for logits_NV in logits:
        scores_NV = logits_NV.to(_accumulation(logits_NV.dtype))
        top_N, prediction_N = scores_NV.max(-1)
        lse_N = scores_NV.logsumexp(-1)
        picked_N = scores_NV.gather(1, targets_N.clamp(min=0)[:, None])[:, 0]
        nll_N = torch.where(targets_N == IGNORED, 0.0, lse_N - picked_N)
        rows.append((nll_N, prediction_N, (top_N - lse_N).exp()))
    return ExitStatistics(*(torch.stack(column) for column in zip(*rows, strict=True)))


@torch.no_grad()
def chunked_statistics(
    hiddens: Sequence[Tensor],
    heads: Sequence[OutputHead],
    targets_N: Tensor,
    *,
    softcap: float | None = None,
    chunk: int | None = None,
) -> ExitStatistics:
    """:func:`statistics_from_logits` of the heads' logits, a chunk of tokens at a time."""
    chunk = chunk or default_chunk(targets_N.device, heads[0].weight_VC.shape[0])
    chunks = []
    for start in range(0, targets_N.numel(), chunk):
        rows = slice(start, start + chunk)
        logits = [
            softcapped(F.linear(hidden_NC[rows], *head).float(), softcap)
            for hidden_NC, head in zip(hiddens, heads, strict=True)
        ]
        chunks.append(statistics_from_logits(logits, targets_N[rows]))
    return ExitStatistics(*(torch.cat(column, dim=-1) for column in zip(*chunks, strict=True)))
