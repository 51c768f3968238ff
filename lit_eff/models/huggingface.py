"""Load a Hugging Face model with exits added, and save one back to a Hugging Face folder.

Reading a local folder needs only ``safetensors``; a hub name needs the ``hf`` extra and a network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_eff.errors import UserError, require
from lit_eff.files import atomic_path
from lit_eff.models.checkpoint import model_from_state
from lit_eff.models.config import AttentionBackend, ExitConfig, ModelConfig
from lit_eff.models.heads import Head
from lit_eff.models.hf_config import Task, config_from_hf, config_to_hf, family_of
from lit_eff.models.hf_weights import (
    EXIT_CLASSIFIER,
    EXIT_HEADS,
    canonical,
    from_theirs,
    rules,
    to_theirs,
)
from lit_eff.models.layers import init_weights
from lit_eff.models.transformer import Transformer

THEIR_HEADS = ("cls.", "lm_head.", "classifier.", "score.")


def from_hf(
    source: str | Path | nn.Module,
    exits: ExitConfig | None = None,
    *,
    labels: int | None = None,
    attention_backend: AttentionBackend = "auto",
) -> Transformer:
    """A :class:`Transformer` with the weights of a Hugging Face model, in eval mode and in their dtype.

    Llama, Mistral, Qwen2, Qwen3, GPT-2 and BERT; language models, masked language models and sequence
    classifiers. Logits at the last exit equal theirs.

    Args:
        source: a ``transformers`` model, a local folder, or the name of a hub repository.
        exits: where to add exits; ``None`` takes those that :func:`save_hf` recorded in the folder, or none.
            New heads start as copies of the final head; parts it does not have start from fresh weights, as
            does an exit classifier that the folder lacks.
        labels: classes of a new, untrained classifier in the place of the model's own head.

    Raises:
        UserError: nothing there, a damaged file, or a model that this class cannot compute exactly.
    """
    hf, theirs, name = _open(source)
    family = str(hf.get("model_type"))
    theirs = {canonical(family, key): tensor for key, tensor in theirs.items()}
    config = config_from_hf(hf, "lm" if labels else _task(hf, name))
    recorded = _recorded_exits(hf)
    config = replace(config, exits=exits if exits is not None else recorded)
    if labels:
        encoder = not config.causal
        config = replace(config, labels=labels, tied=False, head_transform=False, pooler=encoder)
        config = replace(config, output_bias=encoder, pooling="first" if encoder else "last")
        theirs = {key: tensor for key, tensor in theirs.items() if not key.startswith(THEIR_HEADS)}
    wanted = rules(family, config)
    if labels:  # a pretrained pooler is kept, a missing one starts fresh like the output matrix
        wanted = [
            rule
            for rule in wanted
            if not rule.ours.startswith("head.output")
            and not (rule.ours.startswith("head.transform") and rule.theirs[0] not in theirs)
        ]
    state = from_theirs(wanted, theirs, family, name)
    if labels or replace(config.exits, classifier=recorded.classifier) != recorded:
        state = {key: tensor for key, tensor in state.items() if not key.startswith(EXIT_HEADS)}
    if labels or not config.exits.classifier:
        state = {key: tensor for key, tensor in state.items() if not key.startswith(EXIT_CLASSIFIER)}
    state = _fresh_parts(config, state) | state
    state = _copied_exit_heads(config, state) | state
    return model_from_state(config, state, source=name, attention_backend=attention_backend)


def save_hf(model: Transformer, folder: str | Path, *, tokenizer_json: str | None = None) -> Path:
    """Write ``config.json`` and ``model.safetensors`` that ``transformers`` and :func:`from_hf` load.

    ``transformers`` computes the full model. Exits, the weights of their heads and the exit classifier are
    kept beside it, under names that it reports as unexpected and leaves alone. An existing folder is replaced
    as a whole.

    Raises:
        UserError: no Hugging Face family computes this model.
    """
    save_file = require("safetensors.torch", "train").save_file
    config = to_hf_config(model.config)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(to_hf_state_dict(model), temporary / "model.safetensors", metadata={"format": "pt"})
        if tokenizer_json is not None:
            (temporary / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
            about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": model.config.context}
            (temporary / "tokenizer_config.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
    return Path(folder)


def to_hf_config(config: ModelConfig) -> dict[str, Any]:
    """The contents of ``config.json``; raises UserError when no Hugging Face family computes this model."""
    hf = config_to_hf(config, family_of(config))
    hf["lit_eff"] = {"exits": config.to_dict()["exits"]}
    return hf


def to_hf_state_dict(model: Transformer) -> dict[str, Tensor]:
    """The model's tensors on the CPU under Hugging Face's names; those of the exits under ``lit_eff.``."""
    ours = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    return to_theirs(rules(family_of(model.config), model.config), ours, model.config)


def _open(source: str | Path | nn.Module) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Their config, their tensors, and a name for messages."""
    if isinstance(source, nn.Module):
        config: Any = source.config
        hf = dict(config.to_dict()) | {"architectures": [type(source).__name__]}
        tensors = {name: tensor.detach().clone() for name, tensor in source.state_dict().items()}
        return hf, tensors, type(source).__name__
    folder = Path(source)
    if not folder.is_dir():
        folder = _download(str(source))
    try:
        hf = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no config.json; expected a Hugging Face model folder") from None
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'} is not valid JSON: {error}") from error
    return hf, _read_weights(folder), str(source)


def _download(name: str) -> Path:
    hub = require("huggingface_hub", "hf")
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise UserError(f"no folder at {name}; expected a Hugging Face model folder or a hub name")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the hub client raises many kinds, and without a network several layers deep
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{name!r} is no local folder, and the hub did not give it: {reason}") from error


def _read_weights(folder: Path) -> dict[str, Tensor]:
    load_file = require("safetensors.torch", "train").load_file
    files = sorted(folder.glob("*.safetensors"))
    pickled = sorted(folder.glob("pytorch_model*.bin"))
    if not files and not pickled:
        raise UserError(f"{folder} has no *.safetensors and no pytorch_model.bin; expected model weights")
    tensors: dict[str, Tensor] = {}
    for file in files or pickled:
        try:
            tensors |= load_file(file) if files else torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # safetensors and the unpickler raise their own kinds
            raise UserError(f"{file} cannot be read: corrupt or truncated ({error})") from error
    return tensors


def _task(hf: Mapping[str, Any], name: str) -> Task:
    architecture = str((hf.get("architectures") or ["unnamed class"])[0])
    if architecture.endswith("ForSequenceClassification"):
        return "classify"
    if architecture.endswith(("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForPreTraining")):
        return "lm"
    # GPT2Model and LlamaModel have no head of their own, but a tied one is in the embedding.
    tied = bool(hf.get("tie_word_embeddings", hf.get("model_type") == "gpt2"))
    if architecture.endswith("Model") and tied and hf.get("model_type") != "bert":
        return "lm"
    raise UserError(f"{name} is a {architecture}, which has no head to use; pass labels= for a new one")


def _recorded_exits(hf: Mapping[str, Any]) -> ExitConfig:
    recorded = (hf.get("lit_eff") or {}).get("exits") or {}
    return ExitConfig(
        tuple(recorded.get("layers", ())), recorded.get("head", "shared"), recorded.get("classifier", False)
    )


def _fresh_parts(config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Initial weights for what the final head lacks (a new classifier), and for an exit classifier."""
    parts = nn.ModuleDict({"head": Head(config)})
    if config.exits.classifier:
        parts["exit_classifier"] = nn.Linear(config.model_dim, 1)
    init_weights(parts, config.init_std)
    dtype = state["embeddings.tokens.weight"].dtype
    fresh = {name: tensor.to(dtype) for name, tensor in parts.state_dict().items()}
    return {name: tensor for name, tensor in fresh.items() if name not in state}


def _copied_exit_heads(config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Heads for the exits: copies of the final head, or of the matrix it is tied to."""
    if config.exits.head == "shared":
        return {}
    tied = {"output.weight": "embeddings.tokens.weight", "output.bias": "head.bias"}
    heads: dict[str, Tensor] = {}
    for index in range(len(config.exits.layers)):
        head = Head(config, config.exits.head)
        init_weights(head, config.init_std)
        for name, fresh in head.state_dict().items():
            start = state.get(f"head.{name}", state.get(tied.get(name, "")))
            dtype = state["embeddings.tokens.weight"].dtype
            heads[f"{EXIT_HEADS}{index}.{name}"] = fresh.to(dtype) if start is None else start.clone()
    return heads
