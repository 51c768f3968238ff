"""The second stage that trains the exit classifier: everything else is frozen and in eval mode.

The loss needs nothing of the heads but predictions, so no more than a chunk of their logits is ever held.

Shape legend: N tokens (or sequences), E exits whose heads ran, F early exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAUROC, BinaryRecall, BinarySpecificity

from lit_eff.errors import UserError
from lit_eff.models.config import ModelConfig
from lit_eff.training.exit_loss import ExitLoss
from lit_eff.training.layer_dropout import LayerDropout
from lit_eff.training.losses import IGNORED

ExitTarget = Literal["agreement", "correct"]
AUROC_BINS = 500


def check_exit_classifier(
    config: ModelConfig, target: ExitTarget | None, exit_loss: ExitLoss, layer_dropout: LayerDropout
) -> None:
    """Raises UserError where the model has no classifier to train, or one that nothing would train."""
    if target is None:
        if config.exits.classifier:
            raise UserError(
                "exits.classifier is true and model.exit_classifier is not set, so nothing would train it; "
                "set it to agreement or correct for a second stage, or exits.classifier to false"
            )
        return
    if not config.exits.classifier:
        raise UserError(
            f"model.exit_classifier is {target!r} and the model has no exit classifier; "
            "set exits.classifier to true"
        )
    if exit_loss.frozen_backbone:
        raise UserError(
            f"model.exit_classifier is {target!r} with exit_loss.weights only_exits: each trains its part "
            "alone; tune the exits first, then their classifier"
        )
    if layer_dropout.rate > 0:
        raise UserError(
            f"layer_dropout.rate is {layer_dropout.rate} with model.exit_classifier {target!r}; "
            "a frozen backbone learns nothing from dropped layers: set it to 0"
        )


def exits_needed(target: ExitTarget, exits: int) -> tuple[int, ...]:
    """The exit indices whose predictions the target reads: the last one of ``exits`` only to agree with."""
    return tuple(range(exits if target == "agreement" else exits - 1))


def exit_targets(prediction_EN: Tensor, targets_N: Tensor, target: ExitTarget, early: int) -> Tensor:
    """Whether each of the ``early`` first exits predicts as it should, bool (F, N).

    ``agreement``: as the last exit does (CALM, Schuster et al. 2022, section 3.5). ``correct``: as the data
    says (BERxiT, Xin et al. 2021, "learning to exit").
    """
    wanted_N = prediction_EN[-1] if target == "agreement" else targets_N
    return prediction_EN[:early] == wanted_N


def exit_classifier_loss(
    scores_FN: Tensor, prediction_EN: Tensor, targets_N: Tensor, target: ExitTarget
) -> tuple[Tensor, Tensor]:
    """The loss of scores (log-odds) against :func:`exit_targets`, averaged over the early exits.

    ``agreement`` takes the logistic loss, balanced: the mean over an exit's positives and that over its
    negatives in the batch weigh a half each. An exit that has but one of the two adds nothing: a batch must
    not teach it that everything agrees. ``correct`` takes BERxiT's mean squared error of the confidence,
    unbalanced, so that confidences estimate probabilities.

    Args:
        scores_FN: float32.
        prediction_EN: int64, of the exits that :func:`exits_needed` names.
        targets_N: int64; where it is -100 nothing counts.

    Returns:
        The loss (scalar) and each early exit's (F,), detached.
    """
    right_FN = exit_targets(prediction_EN, targets_N, target, len(scores_FN))
    valid_N = targets_N != IGNORED
    wanted_FN = right_FN.to(scores_FN.dtype)
    if target == "correct":
        error_FN = (scores_FN.sigmoid() - wanted_FN).square()
        loss_F = (error_FN * valid_N).sum(1) / valid_N.sum().clamp(min=1)
    else:
        nll_FN = F.binary_cross_entropy_with_logits(scores_FN, wanted_FN, reduction="none")
        weights_FN = _balanced(wanted_FN * valid_N, (1 - wanted_FN) * valid_N)
        loss_F = (nll_FN * weights_FN).sum(1)
    return loss_F.mean(), loss_F.detach()


def _balanced(positive_FN: Tensor, negative_FN: Tensor) -> Tensor:
    """Weights, from 1 where a class is, that give each class half of its row; 0 in a row that lacks one."""
    positives_F1, negatives_F1 = positive_FN.sum(1, keepdim=True), negative_FN.sum(1, keepdim=True)
    halves_FN = positive_FN / positives_F1.clamp(min=1) + negative_FN / negatives_F1.clamp(min=1)
    return halves_FN * ((positives_F1 > 0) & (negatives_F1 > 0)) / 2


class ScoreMetrics(nn.Module):
    """How well the score tells exits to be trusted from others, one value an early exit.

    ``auroc``, of confidences in 500 bins; ``recall`` and ``specificity``: the share of right exits with a
    confidence of at least a half, and of wrong ones with less.

    Args:
        early: how many early exits, F.
        target: what a right exit is.
    """

    def __init__(self, early: int, target: ExitTarget) -> None:
        super().__init__()
        self.target = target
        parts = {
            "auroc": BinaryAUROC(thresholds=AUROC_BINS, validate_args=False),
            "recall": BinaryRecall(validate_args=False),
            "specificity": BinarySpecificity(validate_args=False),
        }
        exits = nn.ModuleList(MetricCollection(parts).clone() for _ in range(early))
        self.exits = cast(Sequence[MetricCollection], exits)

    def update(self, scores_FN: Tensor, prediction_EN: Tensor, targets_N: Tensor) -> None:
        """Add scores (log-odds) against :func:`exit_targets`; targets of -100 are left out."""
        right_FN = exit_targets(prediction_EN, targets_N, self.target, len(scores_FN))
        valid_N = targets_N != IGNORED
        for metrics, score_N, right_N in zip(self.exits, scores_FN, right_FN, strict=True):
            metrics.update(score_N[valid_N].sigmoid(), right_N[valid_N].long())

    def compute(self) -> dict[str, Tensor]:
        """float32 (F,) each: ``score_auroc`` and ``score_balanced_accuracy``."""
        values = [metrics.compute() for metrics in self.exits]
        return {
            "score_auroc": torch.stack([value["auroc"] for value in values]),
            "score_balanced_accuracy": torch.stack(
                [(value["recall"] + value["specificity"]) / 2 for value in values]
            ),
        }

    def reset(self) -> None:
        for metrics in self.exits:
            metrics.reset()
