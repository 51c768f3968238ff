"""Small corpora for the data tests."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np

from lit_eff.data.corpus import CorpusConfig, Documents
from lit_eff.data.readers import TextFormat
from lit_eff.data.splits import Splits
from lit_eff.data.tokenizer import TokenizerConfig

WORDS = [
    "the",
    "a",
    "film",
    "was",
    "good",
    "bad",
    "long",
    "plot",
    "actor",
    "scene",
    "I",
    "liked",
    "hated",
    "never",
    "again",
    "music",
    "boring",
    "great",
    "and",
    "of",
]
TOKENIZER = TokenizerConfig(vocab_size=300)
SPLITS = Splits(0.7, 0.1, 0.1, 0.1)


def sentence(number: int) -> str:
    """A text of its own for every number."""
    rng = random.Random(number)
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 30))) + f" {number}."


def write_jsonl(path: Path, numbers: range, *, labels: bool = False) -> Path:
    rows = [{"text": sentence(n)} | ({"label": ["good", "bad"][n % 2]} if labels else {}) for n in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config(source: Path | str, **changes: object) -> CorpusConfig:
    values: dict[str, object] = {"form": TextFormat(), "splits": SPLITS, "tokenizer": TOKENIZER, **changes}
    return CorpusConfig(source=str(source), **values)  # type: ignore[arg-type]


def documents_of(lists: list[list[int]]) -> Documents:
    lengths = np.array([len(tokens) for tokens in lists], dtype=np.int64)
    spans = np.stack([np.cumsum(lengths) - lengths, lengths], axis=1)
    return Documents(np.array([token for tokens in lists for token in tokens], dtype=np.int32), spans)
