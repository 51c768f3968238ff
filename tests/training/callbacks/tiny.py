"""A real run in a second or two: a little text, a little model, the real modules around them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from lit_eff.data.language_model import LanguageModelData
from lit_eff.data.tokenizer import TokenizerConfig
from lit_eff.models.config import ExitConfig, ModelConfig
from lit_eff.training import LitLanguageModel
from lit_eff.training.callbacks import AtomicCheckpointIO

CONTEXT = 16
BATCH = 4


def write_text(folder: Path, documents: int = 120) -> Path:
    """Lines of random words: a corpus of about a hundred rows."""
    rng = random.Random(0)
    words = ["the", "a", "cat", "dog", "mat", "sat", "ran", "on", "far", "away", "red", "blue"]
    lines = [" ".join(rng.choices(words, k=rng.randint(10, 30))) for _ in range(documents)]
    path = folder / "text.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def make_data(text: Path, **settings: Any) -> LanguageModelData:
    """The corpus is built once and cached beside the text."""
    settings = {"batch_size": BATCH, "validation_tokens": 8 * CONTEXT, **settings}
    return LanguageModelData(
        str(text),
        TokenizerConfig(vocab_size=280),
        context=CONTEXT,
        cache_dir=str(text.parent / "cache"),
        txt_unit="line",
        **settings,
    )


def make_config(**settings: Any) -> ModelConfig:
    settings = {"exits": ExitConfig((1, 2), "norm"), **settings}
    return ModelConfig(vocab_size=300, layers=3, model_dim=16, heads=2, context=64, **settings)


def make_module(config: ModelConfig | None = None, **settings: Any) -> LitLanguageModel:
    return LitLanguageModel(config or make_config(), **settings)


def make_trainer(folder: Path, *callbacks: Callback, max_steps: int = 6, **settings: Any) -> Trainer:
    """Quiet, on the CPU, logging to TensorBoard under ``folder``; no checkpoints unless asked."""
    settings = {
        "accelerator": "cpu",
        "check_val_every_n_epoch": None,
        "val_check_interval": max_steps,
        "log_every_n_steps": 1,
        "logger": TensorBoardLogger(folder, name="runs"),
        "plugins": [AtomicCheckpointIO()],
        "enable_model_summary": False,
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "num_sanity_val_steps": 0,
        **settings,
    }
    return Trainer(max_steps=max_steps, callbacks=list(callbacks), **settings)


def same(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two nested structures of tensors differ in any bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [where]
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{where}: keys {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [spot for key in one for spot in same(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return [f"{where}: length"]
        return [
            spot
            for index, pair in enumerate(zip(one, other, strict=True))
            for spot in same(*pair, f"{where}/{index}")
        ]
    return [] if one == other else [f"{where}: {one!r} and {other!r}"]
