"""Train an early-exit sequence classifier.

Shape legend: B batch, T length, C model dim, E exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.models.config import ModelConfig
from lit_eff.training.base import Batch, LitEarlyExit
from lit_eff.training.losses import ExitStatistics, exit_loss_from_logits, statistics_from_logits


class LitClassifier(LitEarlyExit):
    """One label a sequence, predicted at every exit.

    A batch is a dictionary of int64 tensors: ``tokens_BT``, ``documents_BT`` (-1 padding) and ``labels_B``
    (-100 ignored). Arguments and logged names are those of
    :class:`~lit_eff.training.base.LitEarlyExit`.
    """

    @staticmethod
    def check_task(config: ModelConfig) -> None:
        if not config.labels:
            raise UserError(
                "model.labels is 0; a classifier needs the number of classes (or use LitLanguageModel)"
            )

    def _check_data(self, data: Any) -> None:
        super()._check_data(data)
        classes = getattr(data, "class_names", None)
        if classes is not None and len(classes) != self.config.labels:
            raise UserError(
                f"the data has {len(classes)} classes but model.labels is {self.config.labels}; "
                "make them agree"
            )

    def targets(self, batch: Batch) -> Tensor:
        return batch["labels_B"]

    def loss_of_exits(
        self, batch: Batch, hiddens: Sequence[Tensor], exits: Sequence[int], weights: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        logits = self._logits(batch, hiddens, exits)
        return exit_loss_from_logits(logits, self.targets(batch), weights, self.distillation)

    def statistics(self, batch: Batch, hiddens: Sequence[Tensor]) -> ExitStatistics:
        return statistics_from_logits(self._logits(batch, hiddens, range(len(hiddens))), self.targets(batch))

    def _logits(self, batch: Batch, hiddens: Sequence[Tensor], exits: Sequence[int]) -> list[Tensor]:
        documents_BT = batch.get("documents_BT")
        return [
            self.model.logits(hidden_BTC, index, documents_BT=documents_BT)
            for hidden_BTC, index in zip(hiddens, exits, strict=True)
        ]
