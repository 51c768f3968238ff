"""What training a language model and a classifier share: one step over the exits, resumable to the bit.

Everything that varies with the step (exits trained, layers dropped, dropout's random numbers, learning rate)
is a function of the seed and the step, so a resumed run needs no state beyond weights and optimizer.

Shape legend: B batch, T length, C model dim, N tokens (or sequences), E exits, L layers.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_eff.errors import UserError
from lit_eff.models.config import AttentionBackend, ModelConfig
from lit_eff.models.transformer import Transformer
from lit_eff.training.exit_classifier import (
    ExitTarget,
    ScoreMetrics,
    check_exit_classifier,
    exit_classifier_loss,
    exits_needed,
)
from lit_eff.training.exit_loss import Curriculum, ExitLoss, weights_at
from lit_eff.training.initial_weights import load_initial_weights
from lit_eff.training.layer_dropout import LayerDropout, keep_mask
from lit_eff.training.losses import Distillation, ExitStatistics
from lit_eff.training.metrics import ExitMetrics
from lit_eff.training.optimizers import parameter_groups
from lit_eff.training.schedules import Schedule

Batch = dict[str, Tensor]
MODEL_INPUTS = ("positions_BT", "documents_BT", "token_types_BT")


_EXIT_LOSS, _LAYER_DROPOUT, _SCHEDULE = ExitLoss(), LayerDropout(), Schedule()


class LitEarlyExit(LightningModule):
    """A :class:`Transformer` trained on the weighted losses of its exits; see the two subclasses.

    ``self.model`` exists from ``configure_model`` on, where a sharding strategy can shard it. Logs
    ``train/loss``, ``train/loss_exit_{layer}``, ``train/lr``, ``train/gradient_norm``,
    ``train/nonfinite_steps``; for ``validation`` and ``test`` the ``loss`` (all exits, weighted) and per exit
    ``perplexity_exit_{layer}``, ``accuracy_exit_{layer}``, ``agreement_exit_{layer}`` (with the last exit)
    and ``ece_exit_{layer}`` (expected calibration error). An exit classifier in training has its own loss as
    ``train/loss`` and ``train/loss_exit_{layer}``, and for each early exit ``score_auroc_exit_{layer}`` and
    ``score_balanced_accuracy_exit_{layer}``.

    Args:
        config: the model to train.
        exit_loss: weights, curriculum and self-distillation of the exits.
        exit_classifier: train the exit classifier alone (``exits.classifier``), to tell where an exit's
            prediction is in ``agreement`` with the last one's (CALM) or ``correct`` (BERxiT).
        layer_dropout: LayerSkip's layer dropout.
        optimizer: a torch optimizer, or :class:`lit_eff.training.MuonAdamW`; norms, biases and embeddings
            are kept from its weight decay.
        schedule: learning rate over ``trainer.max_steps``.
        seed: of the initial weights, layer dropout and dropout.
        init_from: a checkpoint of ``lit-eff fit`` (``.ckpt``) or a Hugging Face folder to start from.
        attention_backend: ``auto`` chooses by device and model, and reports the choice.
        activation_checkpointing: recompute layers in the backward pass: less memory, a third more work.
        compile_blocks: ``torch.compile`` every layer.
        max_nonfinite_steps: a step whose gradient is not finite is skipped; this many in a row end the run.

    Raises:
        UserError: settings that do not fit together.
    """

    model: Transformer

    def __init__(
        self,
        config: ModelConfig,
        exit_loss: ExitLoss = _EXIT_LOSS,
        exit_classifier: ExitTarget | None = None,
        layer_dropout: LayerDropout = _LAYER_DROPOUT,
        # A lambda of constants, so that the command line can override single arguments of the default.
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(
            params, lr=1e-3, weight_decay=0.1, fused=True
        ),
        schedule: Schedule = _SCHEDULE,
        seed: int = 0,
        init_from: str | None = None,
        attention_backend: AttentionBackend = "auto",
        activation_checkpointing: bool = False,
        compile_blocks: bool = False,
        max_nonfinite_steps: int = 10,
    ) -> None:
        super().__init__()
        self.check_task(config)
        if seed < 0:
            raise UserError(f"model.seed is {seed}; expected 0 or more")
        if exit_loss.frozen_backbone:
            _check_frozen_backbone(config, layer_dropout)
        check_exit_classifier(config, exit_classifier, exit_loss, layer_dropout)
        self.config = config
        self.exit_loss = exit_loss
        self.exit_classifier = exit_classifier
        self.layer_dropout = layer_dropout
        self.make_optimizer = optimizer
        self.schedule = schedule
        self.seed = seed
        self.init_from = init_from
        self.attention_backend = attention_backend
        self.activation_checkpointing = activation_checkpointing
        self.compile_blocks = compile_blocks
        self.max_nonfinite_steps = max_nonfinite_steps
        self.nonfinite_steps = 0  # in all
        self.nonfinite_in_a_row = 0
        self.exit_metrics = ExitMetrics(len(config.exit_layers))
        self.score_metrics = exit_classifier and ScoreMetrics(len(config.exits.layers), exit_classifier)

    # --- what the subclasses say ---------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def check_task(config: ModelConfig) -> None:
        """Raises UserError when the configured model solves another task."""

    @abstractmethod
    def targets(self, batch: Batch) -> Tensor:
        """int64 targets (N,), -100 ignored."""

    @abstractmethod
    def loss_of_exits(
        self, batch: Batch, hiddens: Sequence[Tensor], exits: Sequence[int], weights: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """The weighted loss (scalar) and each exit's mean cross-entropy (E,) from hidden states (B, T, C)."""

    @abstractmethod
    def statistics(self, batch: Batch, hiddens: Sequence[Tensor]) -> ExitStatistics:
        """Statistics of all exits, from hidden states (B, T, C)."""

    # --- set-up --------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Raises UserError when the data does not fit the model, or the Trainer lacks a setting."""
        self._check_data(getattr(self.trainer, "datamodule", None))
        if stage == "fit":
            if self.trainer.max_steps < 1:
                raise UserError(
                    "trainer.max_steps is not set; schedules and curricula need the run's length "
                    "in optimizer steps"
                )
            if self.trainer.precision == "16-mixed":
                raise UserError("trainer.precision 16-mixed is not supported; use bf16-mixed or 32-true")

    def _check_data(self, data: Any) -> None:
        vocab_size, context = getattr(data, "vocab_size", None), getattr(data, "context", None)
        if vocab_size is not None and vocab_size > self.config.vocab_size:
            raise UserError(
                f"the data's tokenizer has {vocab_size} tokens but model.vocab_size is "
                f"{self.config.vocab_size}; set it to at least {vocab_size}"
            )
        if context is not None and context > self.config.context:
            raise UserError(
                f"data.context {context} is longer than model.context {self.config.context}; make them agree"
            )

    def configure_model(self) -> None:
        """Build ``self.model`` (once), and shard it when the strategy has a device mesh."""
        if hasattr(self, "model"):
            return
        with isolate_rng():  # weights depend on this module's seed, whatever ran before
            torch.manual_seed(self.seed)
            self.model = Transformer(self.config, attention_backend=self.attention_backend)
        restoring = self._trainer is not None and self.trainer.ckpt_path is not None
        if self.init_from is not None and not restoring:
            load_initial_weights(self.model, self.init_from)
        alone = self.model.exit_heads if self.exit_loss.frozen_backbone else self.model.exit_classifier
        if alone is not None:
            self.model.requires_grad_(False)
            alone.requires_grad_(True)
            self.model.eval()
        self.model.checkpoint_blocks = self.activation_checkpointing
        if self.compile_blocks:
            self.model.compile_blocks()
        if self.device_mesh is not None:
            from torch.distributed.fsdp import register_fsdp_forward_method

            from lit_eff.parallel.fsdp import shard_model

            shard_model(self.model, self.device_mesh, precision=str(self.trainer.precision))
            # Losses call these outside forward: with a frozen backbone nothing else would tell FSDP2 that
            # a backward pass comes, and no gradient would be reduced.
            register_fsdp_forward_method(self.model, "head_norm")
            register_fsdp_forward_method(self.model, "exit_score")

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(parameter_groups(self.model))
        # Not trainer.estimated_stepping_batches: reading it drops the data loader's saved position.
        max_steps = self.trainer.max_steps
        scheduler = LambdaLR(optimizer, lambda step: self.schedule.factor(step, max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # --- a step --------------------------------------------------------------------------------------------

    def exit_weights(self, step: int) -> dict[int, float]:
        """Exit index -> loss weight of the exits trained at an optimizer step."""
        return weights_at(self.exit_loss, self.config.exit_layers, step, self.trainer.max_steps)

    def exits_computed(self, step: int) -> tuple[int, ...]:
        """The exits whose heads run at an optimizer step: those trained, and the last one if it teaches."""
        if self.exit_classifier is not None:
            return exits_needed(self.exit_classifier, len(self.config.exit_layers))
        trained = set(self.exit_weights(step))
        last = len(self.config.exit_layers) - 1
        teaches = self.exit_loss.distillation > 0 and any(index < last for index in trained)
        return tuple(sorted(trained | {last} if teaches else trained))

    def hidden_states(
        self, batch: Batch, exits: Sequence[int] | None = None, layer_keep_LB: Tensor | None = None
    ) -> list[Tensor]:
        """Hidden states (B, T, C) at the exits, shallow to deep."""
        inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
        states: list[Tensor] = self.model(
            batch["tokens_BT"], exits=exits, layer_keep_LB=layer_keep_LB, **inputs
        )
        return states

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        step = self.global_step
        micro_batch = batch_idx % self.trainer.accumulate_grad_batches
        rows = batch["tokens_BT"].shape[0]
        keep_LB = self._layers_kept(rows, step, micro_batch)
        if self.config.dropout > 0:
            key = (self.seed, step, micro_batch, self.global_rank)
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
        weights, exits = self.exit_weights(step), self.exits_computed(step)
        hiddens = self.hidden_states(batch, exits, keep_LB)
        if self.exit_classifier is None:
            weights_E = [weights.get(index, 0.0) for index in exits]
            loss, losses = self.loss_of_exits(batch, hiddens, exits, weights_E)
        else:
            predictions_EN = self.statistics(batch, hiddens).prediction_EN
            scores_FN, targets_N = self.exit_scores(batch, hiddens), self.targets(batch)
            loss, losses = exit_classifier_loss(scores_FN, predictions_EN, targets_N, self.exit_classifier)
        self._log_step(loss, dict(zip(exits, losses, strict=False)), rows)
        return loss

    def exit_scores(self, batch: Batch, hiddens: Sequence[Tensor]) -> Tensor:
        """The exit classifier's log-odds at each early exit, (F, N), from hidden states (B, T, C) of all."""
        documents_BT = batch.get("documents_BT")
        early = hiddens[: len(self.config.exits.layers)]
        scores = [self.model.exit_score(hidden_BTC, documents_BT=documents_BT) for hidden_BTC in early]
        return torch.stack([score.flatten() for score in scores])

    def _layers_kept(self, rows: int, step: int, micro_batch: int) -> Tensor | None:
        """This rank's columns of the mask (L, B) over the rows of all ranks.

        Every rank draws the whole mask, so the run is the same however many ranks share a batch.
        """
        # As the data is dealt out: None without a strategy that spans ranks.
        share = self.trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        keep_LB = keep_mask(
            self.layer_dropout,
            layers=self.config.layers,
            batch=rows * share["num_replicas"],
            step=step,
            max_steps=self.trainer.max_steps,
            seed=self.seed,
            micro_batch=micro_batch,
        )
        if keep_LB is None:
            return None
        return keep_LB[:, rows * share["rank"] : rows * (share["rank"] + 1)].to(self.device)

    def _log_step(self, loss: Tensor, losses: dict[int, Tensor], rows: int) -> None:
        self.log_dict(
            {f"train/loss_exit_{self.config.exit_layers[index]}": value for index, value in losses.items()},
            batch_size=rows,
        )
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=rows)
        self.log("train/nonfinite_steps", float(self.nonfinite_steps), batch_size=rows)
        self.log("train/loss", loss, prog_bar=True, batch_size=rows)

    @property
    def distillation(self) -> Distillation | None:
        share = self.exit_loss.distillation
        return Distillation(share, self.exit_loss.temperature) if share > 0 else None

    # --- gradients -----------------------------------------------------------------------------------------

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, and skip the step when a gradient is not finite. Runs before every optimizer step.

        Not Lightning's own clipping, which refuses fused optimizers under mixed precision (they unscale
        float16 gradients themselves; bfloat16's are not scaled).
        """
        parameters = [parameter for parameter in self.parameters() if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if isinstance(norm, torch.distributed.tensor.DTensor):
            norm = norm.full_tensor()
        if not math.isfinite(norm.item()):
            self._skip_step(optimizer)
            return
        self.nonfinite_in_a_row = 0
        self.log("train/gradient_norm", norm)
        if gradient_clip_val is None:
            return
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        else:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def _skip_step(self, optimizer: Optimizer) -> None:
        # The norm is the same on every rank, so all skip together. An optimizer passes over a parameter
        # without a gradient: neither weights nor moments move.
        optimizer.zero_grad(set_to_none=True)
        self.nonfinite_steps += 1
        self.nonfinite_in_a_row += 1
        if self.nonfinite_in_a_row >= self.max_nonfinite_steps:
            raise UserError(
                f"gradients were not finite in {self.nonfinite_in_a_row} steps in a row, up to "
                f"step {self.global_step}; lower the learning rate, set trainer.gradient_clip_val, or look "
                "at the data"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["nonfinite_steps"] = (self.nonfinite_steps, self.nonfinite_in_a_row)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.nonfinite_steps, self.nonfinite_in_a_row = checkpoint.get("nonfinite_steps", (0, 0))

    # --- evaluation ----------------------------------------------------------------------------------------

    def _evaluate(self, batch: Batch) -> None:
        hiddens, targets_N = self.hidden_states(batch), self.targets(batch)
        statistics = self.statistics(batch, hiddens)
        self.exit_metrics.update(statistics, targets_N)
        if self.score_metrics is not None:
            self.score_metrics.update(self.exit_scores(batch, hiddens), statistics.prediction_EN, targets_N)

    def _log_evaluation(self, stage: str) -> None:
        """``loss`` weighs all exits, whatever the curriculum had on, so that it compares across steps."""
        # torchmetrics squeezes the one value of a model without early exits.
        metrics = {name: value_E.reshape(-1) for name, value_E in self.exit_metrics.compute().items()}
        curves = {name: metrics[name] for name in ("perplexity", "accuracy", "agreement", "ece")}
        if self.score_metrics is not None:
            curves |= self.score_metrics.compute()
        with torch.inference_mode(False):  # or a fit after a validate could not add to the sums
            self.exit_metrics.reset()
            if self.score_metrics is not None:
                self.score_metrics.reset()
        static = dataclasses.replace(self.exit_loss, curriculum=Curriculum())
        weights = weights_at(static, self.config.exit_layers, step=0, max_steps=1)
        weighted = [weight * metrics["nll"][index] for index, weight in weights.items()]
        values = {f"{stage}/loss": torch.stack(weighted).sum()}
        for name, curve in curves.items():
            for layer, value in zip(self.config.exit_layers, curve, strict=False):
                values[f"{stage}/{name}_exit_{layer}"] = value
        self.log_dict({name: value.float() for name, value in values.items()}, sync_dist=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("validation")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> ExitStatistics:
        """Every exit's prediction, confidence and cross-entropy, (E, N)."""
        return self.statistics(batch, self.hidden_states(batch))


def _check_frozen_backbone(config: ModelConfig, layer_dropout: LayerDropout) -> None:
    if not config.exits.layers or config.exits.head == "shared":
        raise UserError(
            f"exit_loss.weights only_exits trains the exits' own heads, but exits.layers is "
            f"{list(config.exits.layers)} with head {config.exits.head!r}; use head norm, linear or mlp"
        )
    if layer_dropout.rate > 0:
        raise UserError(
            f"layer_dropout.rate is {layer_dropout.rate} with exit_loss.weights only_exits; "
            "a frozen backbone learns nothing from dropped layers: set it to 0"
        )
