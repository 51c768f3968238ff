"""The calibrate job of a classifier: every exit's prediction computed once, then any number of thresholds.

One prediction a sequence, so the loss of a sequence is 0 or 1, and the exit it leaves at follows from the
confidences alone: the first whose confidence reaches its threshold, or the last.

Shapes: B sequences, E exits, K exit rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_eff.calibration.certify import Outcome, Progress, certify, check_sequences, stage_name
from lit_eff.calibration.config import CLASSIFIER_RISKS, CalibrationConfig
from lit_eff.decoding.confidence import hidden_saturation, of_logits
from lit_eff.errors import UserError
from lit_eff.models.checkpoint import LoadedCheckpoint
from lit_eff.models.heads import pool
from lit_eff.models.transformer import Transformer
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.confidence import Measure, patience
from lit_eff.runtime.exit_rule import ExitRule

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Predictions:
    """What every exit makes of every sequence.

    Attributes:
        labels_BE: predicted classes, int64; the last exit is the full model.
        confidence_BE: float32, in [0, 1].
        truth_B: the true classes, int64.
    """

    labels_BE: NDArray[np.int64]
    confidence_BE: NDArray[np.float32]
    truth_B: NDArray[np.int64]


@torch.inference_mode()
def predict(
    model: Transformer,
    batches: Sequence[Batch],
    measure: Measure,
    progress: Progress | None = None,
    stage: str = "",
) -> Predictions:
    """Run all layers and heads once. The model is put into eval mode and stays there.

    Args:
        batches: ``tokens_BT``, ``documents_BT`` (-1 padding) and ``labels_B``, int64.

    Raises:
        UserError: for a model that yields NaN.
    """
    model.eval()
    labels, certain, truth = [], [], []
    done, total = 0, sum(len(batch["labels_B"]) for batch in batches)
    for batch in batches:
        tokens_BT, documents_BT = (batch[name].to(model.device) for name in ("tokens_BT", "documents_BT"))
        states = model(tokens_BT, documents_BT=documents_BT)
        heads = [model.logits(state, e, documents_BT=documents_BT) for e, state in enumerate(states)]
        logits_EBV = torch.stack(heads)
        if not logits_EBV.isfinite().all():
            raise UserError("the model yields logits that are not finite; was its training stable?")
        labels.append(logits_EBV.argmax(dim=-1).T.cpu())
        positions_1T = torch.arange(tokens_BT.shape[1], device=model.device)[None]
        before = [model.embed(tokens_BT, positions_1T), *states[:-1]]
        certain.append(_confidence(model, before, states, logits_EBV, documents_BT, measure).T.cpu())
        truth.append(batch["labels_B"])
        done += len(truth[-1])
        if progress is not None:
            progress(stage, done, total)
    return Predictions(*(torch.cat(parts).numpy() for parts in (labels, certain, truth)))


def _confidence(
    model: Transformer,
    before: Sequence[Tensor],
    states: Sequence[Tensor],
    logits_EBV: Tensor,
    documents_BT: Tensor,
    measure: Measure,
) -> Tensor:
    """Of every exit, float32 ``(E, B)``; hidden states, here and at the exit before, pooled as a head's."""
    if measure == "classifier":
        return torch.stack([model.exit_score(state, documents_BT=documents_BT).sigmoid() for state in states])
    if measure == "hidden_saturation":
        pooled = [
            [pool(state_BTC, model.config.pooling, documents_BT) for state_BTC in pair]
            for pair in zip(states, before, strict=True)
        ]
        return torch.stack([hidden_saturation(here_BC, before_BC) for here_BC, before_BC in pooled])
    if measure == "patience":
        labels_EB = logits_EBV.argmax(dim=-1)
        streak_EB = torch.zeros_like(labels_EB)
        for e in range(1, len(labels_EB)):
            streak_EB[e] = torch.where(labels_EB[e] == labels_EB[e - 1], streak_EB[e - 1] + 1, 0)
        return torch.from_numpy(patience(streak_EB.cpu().numpy(), len(states) - 1))
    return torch.stack([of_logits(logits_BV, measure) for logits_BV in logits_EBV])


def calibrate_classifier(
    loaded: LoadedCheckpoint,
    calibration: Sequence[Batch],
    test: Sequence[Batch],
    config: CalibrationConfig,
    *,
    split_hashes: Mapping[str, str],
    learning: Sequence[Batch] | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """Certify the boldest exit thresholds, shared or a vector, whose risk is at most ``config.delta``.

    Args:
        calibration, test: labelled sequences in batches, as :func:`predict` takes them; each sequence is an
            independent draw, and no document is in both.
        split_hashes: SHA-256 of the ``calibration`` and ``test`` splits, of ``learning`` if there is one, and
            of ``train`` if known.
        learning: of documents in neither, where the procedure learns vectors of thresholds.

    Returns:
        The certificate. ``selected`` is ``None``, and its rule never exits, where nothing could be certified.

    Raises:
        UserError: too few sequences (with the number needed), splits that are not disjoint, a risk of
            language models, or a model that is no classifier or has no early exits.
    """
    model, exit_layers = loaded.model, loaded.model.config.exit_layers
    if not model.config.labels:
        raise UserError("this checkpoint is no classifier: model.labels is 0")
    if not config.classifies:
        raise UserError(
            f"calibration.risk is {config.risk!r}, and this checkpoint is a classifier; "
            f"use {' or '.join(CLASSIFIER_RISKS)}"
        )
    if len(exit_layers) == 1:
        raise UserError("this model has no early exits to calibrate; train it with exits.layers set")
    if split_hashes["calibration"] == split_hashes["test"]:
        raise UserError("the calibration and test splits are the same; take two splits of one corpus")
    check_sequences(config, sum(len(batch["labels_B"]) for batch in calibration))
    splits = {"calibration": calibration, "test": test}
    if config.learns:
        if learning is None:
            raise UserError(f"{config.procedure} learns on sequences of their own; give learning")
        splits["learning"] = learning

    @cache  # the search for vectors asks for one split again and again
    def predicted(split: str, measure: Measure, stage: str) -> Predictions:
        return predict(model, splits[split], measure, progress, stage)

    def run(split: str, rules: Sequence[ExitRule]) -> Outcome:
        predictions = predicted(split, rules[0].measure, stage_name(config, split, rules))
        exits_BK = leave(predictions, [ExitRule(measure=rules[0].measure), *rules])
        losses_RBK = np.stack([losses(predictions, exits_BK, each.risk) for each in config.risks])
        return Outcome.of_exits(losses_RBK, exits_BK.T[:, :, None], exit_layers)

    # A sequence is read whole, and its label is all that comes out.
    config = replace(config, prompt_length=None, continuation_length=1)
    return certify(loaded, config, run, split_hashes=split_hashes)


def leave(predictions: Predictions, rules: Sequence[ExitRule]) -> NDArray[np.int64]:
    """The exit index each sequence leaves at under each rule, int64 ``(B, K)``."""
    exits = predictions.labels_BE.shape[1]
    exits_BK = np.full((len(predictions.labels_BE), len(rules)), exits - 1, np.int64)
    for k, rule in enumerate(rules):
        for e in reversed(range(exits - 1)):
            exits_BK[rule.should_exit(e, predictions.confidence_BE[:, e], 0), k] = e
    return exits_BK


def losses(predictions: Predictions, exits_BK: NDArray[np.int64], risk: str) -> NDArray[np.float64]:
    """0 or 1, float64 ``(B, K)``: not the full model's label or, for ``error``, wrong where that is right."""
    early_BK = np.take_along_axis(predictions.labels_BE, exits_BK, axis=1)
    full_B1, truth_B1 = predictions.labels_BE[:, -1:], predictions.truth_B[:, None]
    lost_BK = early_BK != full_B1
    if risk == "error":
        lost_BK &= full_B1 == truth_B1
    return np.asarray(lost_BK, np.float64)
