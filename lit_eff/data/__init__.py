"""Text and classification data: sources, content-hash splits, tokenizers, a token cache, packed batches.

Where to start reading: :mod:`~lit_eff.data.language_model` (the DataModule), then
:mod:`~lit_eff.data.corpus` (source to cached tokens), :mod:`~lit_eff.data.packing` (documents to rows) and
:mod:`~lit_eff.data.stream` (which row is trained on when).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_eff.data.classification import ClassificationData
    from lit_eff.data.language_model import LanguageModelData
    from lit_eff.data.splits import Splits
    from lit_eff.data.tokenizer import TokenizerConfig

__all__ = ["ClassificationData", "LanguageModelData", "Splits", "TokenizerConfig"]

_HOMES = {
    "ClassificationData": "classification",
    "LanguageModelData": "language_model",
    "Splits": "splits",
    "TokenizerConfig": "tokenizer",
}


def __getattr__(name: str) -> Any:
    # Lazily: reading sources and caches needs neither torch nor Lightning, which takes seconds to import.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
