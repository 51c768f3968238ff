"""Read a training checkpoint back, without Lightning: the model, its tokenizer, and the recipe it came from.

A Lightning ``.ckpt`` from ``lit-eff fit`` holds the weights under ``state_dict`` with the prefix ``model.``
(and under ``ema_state_dict`` if an average ran, which is preferred), and under ``lit_eff`` everything else.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_eff.errors import UserError
from lit_eff.models.config import AttentionBackend, ModelConfig
from lit_eff.models.transformer import Transformer

FORMAT = 1
PREFIX = "model."


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint, ready to run.

    Attributes:
        model: in eval mode, in the dtype of the stored weights, on the CPU.
        tokenizer_json: what ``tokenizers.Tokenizer.from_str`` reads; ``None`` when the run had none.
        recipe: the composed recipe, all sections.
        metadata: the rest of ``ckpt["lit_eff"]`` (recipe_name, overrides, git_commit, split_hashes), and
            ``global_step``, and ``weights``: ``trained`` or ``ema``.
        weights_sha256: see :func:`weights_sha256`.
    """

    model: Transformer
    tokenizer_json: str | None
    recipe: dict[str, Any]
    metadata: dict[str, Any]
    weights_sha256: str


def load_checkpoint(path: str | Path, *, attention_backend: AttentionBackend = "auto") -> LoadedCheckpoint:
    """Load a ``.ckpt`` that ``lit-eff fit`` wrote. Nothing but tensors and plain data is unpickled.

    Raises:
        UserError: the file is missing, truncated, foreign, of a newer format, or its weights do not fit.
    """
    path = Path(path)
    stored = _read(path)
    about = stored.get("lit_eff")
    if not isinstance(about, Mapping) or not isinstance(stored.get("state_dict"), Mapping):
        raise UserError(
            f"{path} is not a checkpoint of lit-eff fit: it has no 'lit_eff' section; "
            "for Hugging Face weights pass their folder"
        )
    if about.get("format") != FORMAT:
        raise UserError(
            f"{path} has checkpoint format {about.get('format')!r}, this version reads {FORMAT}; "
            "use the lit_eff version that wrote it"
        )
    averaged = "ema_state_dict" in stored
    weights = stored["ema_state_dict" if averaged else "state_dict"]
    state = {name.removeprefix(PREFIX): value for name, value in weights.items() if name.startswith(PREFIX)}
    config = ModelConfig.from_dict(about["model_config"])
    model = model_from_state(config, state, source=str(path), attention_backend=attention_backend)
    metadata = {key: value for key, value in about.items() if key not in _OWN_FIELDS}
    metadata |= {"global_step": stored.get("global_step"), "weights": "ema" if averaged else "trained"}
    return LoadedCheckpoint(
        model, about.get("tokenizer_json"), dict(about.get("recipe") or {}), metadata, weights_sha256(model)
    )


_OWN_FIELDS = ("format", "model_config", "tokenizer_json", "recipe")


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a .ckpt file (merge a sharded checkpoint first)")
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; check --ckpt_path")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise UserError(f"{path} is corrupt: the checksum of its part {damaged} is wrong")
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise UserError(f"{path} holds Python objects, which are never unpickled") from error
        raise UserError(f"{path} cannot be read: corrupt, or not a PyTorch checkpoint") from error
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise UserError(f"{path} cannot be read: truncated, or not a PyTorch checkpoint") from error
    if not isinstance(stored, dict):
        raise UserError(f"{path} holds a {type(stored).__name__}; expected a checkpoint of lit-eff fit")
    return stored


def model_from_state(
    config: ModelConfig,
    state: Mapping[str, Tensor],
    *,
    source: str,
    attention_backend: AttentionBackend = "auto",
) -> Transformer:
    """A model in eval mode around ``state`` itself (no copy, no random initialisation).

    Raises:
        UserError: names or shapes that do not fit ``config``; the first few are named with ``source``.
    """
    with torch.device("meta"):
        model = Transformer(config, attention_backend=attention_backend)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in expected]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{source}: weights do not fit the model: {', '.join(problems[:3])}{more}")
    model.load_state_dict(state, assign=True)
    return model.eval()


def weights_sha256(model: nn.Module) -> str:
    """Hexadecimal SHA-256 over the state dict: sorted names, dtypes, shapes and little-endian bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
