"""What a bundle holds: one folder with everything an engine needs, each file named and hashed.

    manifest.json    this module's :class:`Manifest`
    tokenizer.json   Hugging Face tokenizers format
    exits.json       the certificate, where there is one
    embed.onnx       tokens to hidden states
    segment_E.onnx   the layers between exit E - 1 and exit E, keys and values in place
    head_E.onnx, ... hidden states to logits; graphs that exits share are there once
    propagate_E.onnx hidden states to the keys and values of segment E, where the KV policy is propagate
    exit_classifier.onnx   hidden states to the exit classifier's score, where there is one
    weights.bin      the weights of all graphs, each content once
    model.safetensors, hf/   the other formats

Nothing in it is ever unpickled, and nothing is used before its hash was checked.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from lit_eff.errors import UserError
from lit_eff.runtime.schema import Strict

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
CERTIFICATE = "exits.json"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Segment(Strict):
    """Layers ``start .. stop - 1`` (0-based) in one graph.

    Attributes:
        propagate: the graph that gives these layers the keys and values of a hidden state that left before
            them; ``None``, and then not in the file, where the certificate has another KV policy.
    """

    start: Annotated[int, Field(ge=0)]
    stop: Annotated[int, Field(ge=1)]
    file: str
    propagate: str | None = None


class OnnxGraphs(Strict):
    """The graphs of the ``onnx`` format.

    Attributes:
        segments: shallow to deep, one per exit.
        heads: for each exit the graphs to run one after the other, from hidden states to logits. A graph that
            several exits list is loaded once.
        max_logit_error: per exit, the largest absolute difference from torch's logits on random tokens,
            measured when the bundle was written.
        classifier: from hidden states to the exit classifier's scores; ``None``, and then not in the file,
            for a model without one.
    """

    embed: str
    segments: tuple[Segment, ...]
    heads: tuple[tuple[str, ...], ...]
    max_logit_error: tuple[float, ...]
    classifier: str | None = None

    @property
    def graph_files(self) -> tuple[str, ...]:
        """Every graph, each once."""
        names = [self.embed, *(segment.file for segment in self.segments)]
        names += [name for head in self.heads for name in head]
        optional = [self.classifier, *(segment.propagate for segment in self.segments)]
        return tuple(dict.fromkeys([*names, *(name for name in optional if name is not None)]))


class Provenance(Strict):
    """Where the weights come from."""

    recipe_name: str | None
    overrides: tuple[str, ...]
    git_commit: str | None
    split_hashes: dict[str, str]
    weights_sha256: Sha256
    versions: dict[str, str]


class Manifest(Strict):
    """What the bundle holds. In the file it also carries a digest of its own content.

    Attributes:
        model: ``ModelConfig.to_dict()``.
        exit_layers: layers run at each exit; the last is the whole model.
        onnx, torch, hf: what each format consists of (graphs; a safetensors file; a folder), or ``None``.
        decoding, serve: the recipe's sections of these names: defaults for whoever runs the bundle.
        files: SHA-256 of every other file, by its path in the folder.
    """

    format_version: Literal[1] = 1
    model: dict[str, Any]
    exit_layers: tuple[int, ...]
    onnx: OnnxGraphs | None
    torch: str | None
    hf: str | None
    decoding: dict[str, Any]
    serve: dict[str, Any] = Field(default_factory=dict)
    provenance: Provenance
    files: dict[str, Sha256]

    @model_validator(mode="after")
    def _holds_together(self) -> Manifest:
        for name in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name:
                raise ValueError(f"{name!r} is not a path inside the bundle")
        needed = [self.torch] if self.torch else []
        if self.onnx is not None:
            needed += self.onnx.graph_files
            borders = tuple(segment.stop for segment in self.onnx.segments)
            if borders != self.exit_layers or len(self.onnx.heads) != len(self.exit_layers):
                raise ValueError("segments and heads do not match exit_layers")
        for name in needed:
            if name not in self.files:
                raise ValueError(f"{name} is used and not listed in files")
        return self

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats in this bundle."""
        return tuple(name for name in ("onnx", "torch", "hf") if getattr(self, name) is not None)

    def save(self, folder: Path) -> None:
        """Write ``manifest.json`` into a bundle under construction."""
        content = self.model_dump(mode="json")
        document = {**content, "content_sha256": _digest(content)}
        (folder / MANIFEST).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: str | Path) -> Manifest:
    """What a bundle says it holds; its files are not looked at.

    Raises:
        UserError: for a folder without a manifest, and one that is truncated, altered or of a newer format.
    """
    path = Path(folder) / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} is not a bundle: it has no {MANIFEST}; `lit-eff export` writes one"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"bundle {folder}: {MANIFEST} is truncated or altered: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("format_version"), int):
        raise UserError(f"bundle {folder}: {MANIFEST} has no format_version; it is truncated or altered")
    version = content["format_version"]
    if version > FORMAT_VERSION:
        raise UserError(
            f"bundle {folder}: {MANIFEST} has format {version}, newer than the {FORMAT_VERSION} "
            "this lit_eff reads; upgrade lit_eff"
        )
    if content.pop("content_sha256", None) != _digest(content):
        raise UserError(f"bundle {folder}: {MANIFEST} was altered (content_sha256 differs); export it again")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "content"
        raise UserError(f"bundle {folder}: {MANIFEST}: {field}: {first['msg']}") from None


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
