"""A real bundle of a tiny model with a byte-level tokenizer, and certificates that fit it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_eff.export.config import ExportConfig, Format
from lit_eff.export.job import export_bundle
from lit_eff.models.checkpoint import LoadedCheckpoint
from lit_eff.models.config import ExitConfig
from lit_eff.runtime.certificate import Certificate, tokenizer_sha256
from tests.export.models import loaded, tiny_model
from tests.runtime.fakes import byte_tokenizer
from tests.runtime.test_certificate import candidate, certificate


def readable_checkpoint() -> LoadedCheckpoint:
    """As ``tests.export.models.loaded``, with a tokenizer that reads text."""
    tokenizer = byte_tokenizer()
    model = tiny_model(vocab_size=tokenizer.get_vocab_size(), layers=3, exits=ExitConfig((1, 2)))
    return loaded(model, tokenizer_json=tokenizer.to_str(), recipe={})


def bold_certificate(checkpoint: LoadedCheckpoint, **changes: Any) -> Certificate:
    """Every token leaves at the first exit: on a random model that changes nearly every token."""
    values = {
        "candidates": (candidate(0.0, 0.1, 0.001),),
        "selected": 0,
        "thresholds": (0.0, 0.0),
        "exit_layers": checkpoint.model.config.exit_layers,
        "decay": None,
        "prompt_length": 4,
        "continuation_length": 5,
        "weights_sha256": checkpoint.weights_sha256,
        "tokenizer_sha256": tokenizer_sha256(checkpoint.tokenizer_json),
    }
    return certificate(**{**values, **changes})


def readable_bundle(folder: Path, formats: tuple[Format, ...] = ("onnx",), **changes: Any) -> Path:
    checkpoint = readable_checkpoint()
    return export_bundle(checkpoint, folder, bold_certificate(checkpoint, **changes), ExportConfig(formats))
