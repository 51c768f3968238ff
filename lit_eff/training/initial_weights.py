"""Start a run from other weights: a lit-eff checkpoint or a Hugging Face model."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from lit_eff.errors import UserError
from lit_eff.models.config import ModelConfig
from lit_eff.models.transformer import Transformer

# Settings that may differ from the source's: no weight depends on them, or those of heads alone.
FREE = {"exits", "dropout", "init_std", "pooling"}
HEAD_FREE = {"labels", "pooler", "head_transform", "tied", "output_bias", "logit_softcap"}


@torch.no_grad()
def load_initial_weights(model: Transformer, source: str) -> None:
    """Copy the source's weights into ``model``.

    Exits that a checkpoint lacks start as copies of its final head, part by part (EE-Tuning, Pan et al.
    2024); parts with no counterpart, and an exit classifier, keep their fresh weights. So does the final
    head, if the source solves another task (a language model's weights for a classifier).

    Args:
        source: a ``.ckpt`` of ``lit-eff fit``, or a Hugging Face folder or name.

    Raises:
        UserError: the source cannot be read, or describes another model.
    """
    other = _load(source, model.config)
    same_task = other.config.labels == model.config.labels
    theirs, ours = _shape(other.config, same_task), _shape(model.config, same_task)
    for name, value in theirs.items():
        if ours[name] != value:
            raise UserError(
                f"model.{name} is {ours[name]!r} but {value!r} in init_from {source}; make them agree"
            )
    state = other.state_dict()
    if not same_task:
        state = {name: value for name, value in state.items() if not _in_a_head(name)}
    target = model.state_dict()
    for name, tensor in target.items():
        part = name.split(".", 2)[2] if name.startswith("exit_heads.") else ""
        twins = [name, f"head.{part}"]
        if part == "output.weight":  # the final head reads the embedding when they are tied
            twins.append("embeddings.tokens.weight")
        found = next((state[twin] for twin in twins if twin in state), None)
        if found is not None and found.shape == tensor.shape:
            tensor.copy_(found)
        elif not _in_a_head(name):
            raise UserError(f"init_from {source} has no weight {name} of shape {tuple(tensor.shape)}")


def _in_a_head(name: str) -> bool:
    return name.startswith(("exit_heads.", "head.", "exit_classifier."))


def _load(source: str, config: ModelConfig) -> Transformer:
    if Path(source).suffix == ".ckpt":
        from lit_eff.models.checkpoint import load_checkpoint

        return load_checkpoint(source).model
    from lit_eff.models.huggingface import from_hf

    other = from_hf(source, config.exits)
    if config.labels and other.config.labels != config.labels:
        return from_hf(source, config.exits, labels=config.labels)
    return other


def _shape(config: ModelConfig, same_task: bool) -> dict[str, Any]:
    """The settings that must agree, with defaults that depend on others spelled out."""
    free = FREE if same_task else FREE | HEAD_FREE
    if config.positions == "rope":
        free = free | {"context"}
    values = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in free}
    resolved = {
        "kv_heads": config.n_kv_heads,
        "head_dim": config.head_size,
        "mlp_dim": config.mlp_size,
        "rotary_dim": config.rotary,
    }
    return values | resolved
