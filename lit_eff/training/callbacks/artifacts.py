"""What a run leaves beside its weights: where they came from, the tokenizer, and a report."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

import lit_eff
from lit_eff.errors import UserError
from lit_eff.files import atomic_path
from lit_eff.models.checkpoint import FORMAT
from lit_eff.models.transformer import Transformer
from lit_eff.training.callbacks.depth_plot import depth_curves
from lit_eff.training.callbacks.throughput import Throughput

REPORT, TOKENIZER = "report.json", "tokenizer.json"


class RunArtifacts(Callback):
    """Makes a checkpoint stand alone, and writes ``tokenizer.json`` and ``report.json`` into the run folder.

    ``checkpoint["lit_eff"]`` holds the model's configuration, the tokenizer, the recipe with its overrides,
    the git commit, and the hash of each split: see :func:`lit_eff.models.checkpoint.load_checkpoint`.
    The report is written anew after each validation and at the end.

    Args:
        recipe: the composed recipe, all sections, plain types.
        recipe_name: its name.
        overrides: the command line's changes to it.
        git_commit: see :func:`git_commit`.

    Raises:
        UserError: at the start of a run whose ModelCheckpoint saves weights only (all this would be missing).
    """

    def __init__(
        self,
        recipe: Mapping[str, Any] | None = None,
        recipe_name: str | None = None,
        overrides: Sequence[str] = (),
        git_commit: str | None = None,
    ) -> None:
        self.recipe = dict(recipe or {})
        self.recipe_name = recipe_name
        self.overrides = list(overrides)
        self.git_commit = git_commit
        self._folder: Path | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.save_weights_only:
                raise UserError(
                    "ModelCheckpoint.save_weights_only leaves out the tokenizer and the recipe that later "
                    "commands need; set it to false"
                )
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)  # collective: all ranks ask
        tokenizer = _of_data(trainer, "tokenizer_json")
        if tokenizer is not None and trainer.is_global_zero:
            with atomic_path(self._folder / TOKENIZER) as temporary:
                temporary.write_text(tokenizer, encoding="utf-8")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        model = pl_module.model
        assert isinstance(model, Transformer)
        checkpoint["lit_eff"] = {
            "format": FORMAT,
            "version": lit_eff.__version__,
            "model_config": model.config.to_dict(),
            "tokenizer_json": _of_data(trainer, "tokenizer_json"),
            "recipe": self.recipe,
            "recipe_name": self.recipe_name,
            "overrides": self.overrides,
            "git_commit": self.git_commit,
            "split_hashes": dict(_of_data(trainer, "split_hashes") or {}),
        }

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._report(trainer, pl_module, "running")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer, pl_module, "finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        stopped = isinstance(exception, KeyboardInterrupt | SystemExit)
        self._report(trainer, pl_module, "interrupted" if stopped else "failed")

    def _report(self, trainer: Trainer, pl_module: LightningModule, status: str) -> None:
        if self._folder is None or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        training = training_report(trainer, pl_module)
        data: Any = getattr(trainer, "datamodule", None)
        if status == "finished" and hasattr(data, "unigram_perplexity"):
            training["unigram_perplexity"] = data.unigram_perplexity("validation")
        report = {
            "status": status,
            "recipe": self.recipe_name,
            "overrides": self.overrides,
            "git_commit": self.git_commit,
            "training": training,
            "artifacts": {
                "checkpoint": _best_checkpoint(trainer),
                "tensorboard": str(self._folder),
                "tokenizer": str(self._folder / TOKENIZER) if (self._folder / TOKENIZER).is_file() else None,
            },
            "sources": SOURCES,
        }
        with atomic_path(self._folder / REPORT) as temporary:
            temporary.write_text(json.dumps(_finite(report), indent=2, allow_nan=False), encoding="utf-8")


SOURCES = {
    "training.perplexity_per_exit": "measured: last validation, shallow to deep",
    "training.accuracy_per_exit": "measured: last validation, shallow to deep",
    "training.agreement_per_exit": "measured: last validation, share of predictions equal to the last exit's",
    "training.ece_per_exit": "measured: last validation, expected calibration error",
    "training.score_auroc_per_exit": "measured: last validation, the exit classifier at each early exit",
    "training.unigram_perplexity": "counted: unigram model of the train split on the validation targets",
    "training.tokens_per_second": "measured: this run's training batches, without validation and warm-up",
    "training.parameters": "counted",
}


def training_report(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """The report's ``training`` section: lists run over the exits, shallow to deep."""
    model = pl_module.model
    assert isinstance(model, Transformer)
    report: dict[str, Any] = {
        "steps": trainer.global_step,
        "max_steps": trainer.max_steps,
        "parameters": model.parameter_count(),
        "exit_layers": list(model.config.exit_layers),
    }
    for name, curve in depth_curves(trainer.callback_metrics).items():
        if name != "perplexity" or not model.config.labels:
            report[f"{name}_per_exit"] = list(curve.values())
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    for callback in callbacks:
        if isinstance(callback, Throughput) and callback.total_seconds > 0:
            report["tokens_per_second"] = callback.total_tokens / callback.total_seconds
    return report


def git_commit(folder: str | Path = ".") -> str | None:
    """The commit checked out in ``folder``, with ``-dirty`` if files differ; ``None`` if there is none."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _of_data(trainer: Trainer, name: str) -> Any:
    return getattr(getattr(trainer, "datamodule", None), name, None)


def _best_checkpoint(trainer: Trainer) -> str | None:
    for callback in trainer.checkpoint_callbacks:
        path = getattr(callback, "best_model_path", "") or getattr(callback, "last_model_path", "")
        if path:
            return str(path)
    return None


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: ``None`` instead."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
