"""Train an early-exit language model.

Shape legend: B batch, T length, C model dim, N = B * T tokens, E exits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.models.config import ModelConfig
from lit_eff.training.base import Batch, LitEarlyExit
from lit_eff.training.losses import ExitStatistics, OutputHead, chunked_exit_loss, chunked_statistics


class LitLanguageModel(LitEarlyExit):
    """Next-token prediction at every exit.

    A batch is a dictionary of int64 (B, T) tensors: ``tokens_BT``, ``targets_BT`` (-100 ignored) and
    optionally ``positions_BT`` and ``documents_BT``. Arguments and logged names are those of
    :class:`~lit_eff.training.base.LitEarlyExit`.
    """

    @staticmethod
    def check_task(config: ModelConfig) -> None:
        if config.labels:
            raise UserError(f"model.labels is {config.labels}; a language model has 0 (use LitClassifier)")

    def targets(self, batch: Batch) -> Tensor:
        return batch["targets_BT"].flatten()

    def loss_of_exits(
        self, batch: Batch, hiddens: Sequence[Tensor], exits: Sequence[int], weights: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        return chunked_exit_loss(
            self._normed(hiddens, exits),
            self._heads(exits),
            self.targets(batch),
            weights,
            softcap=self.config.logit_softcap,
            distillation=self.distillation,
        )

    def statistics(self, batch: Batch, hiddens: Sequence[Tensor]) -> ExitStatistics:
        exits = range(len(hiddens))
        return chunked_statistics(
            self._normed(hiddens, exits),
            self._heads(exits),
            self.targets(batch),
            softcap=self.config.logit_softcap,
        )

    def _normed(self, hiddens: Sequence[Tensor], exits: Sequence[int]) -> list[Tensor]:
        return [
            self.model.head_norm(hidden_BTC, index).flatten(0, 1)
            for hidden_BTC, index in zip(hiddens, exits, strict=True)
        ]

    def _heads(self, exits: Sequence[int]) -> list[OutputHead]:
        return [OutputHead(self.model.head_weight(index), self.model.head_bias(index)) for index in exits]
