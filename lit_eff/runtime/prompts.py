"""Prompts from a file: text for people to write, or the token ids that a server logged; and made-up ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lit_eff.errors import UserError

TOKENS, TEXT = "prompt_tokens", "text"
Prompt = tuple[int, ...]
SENTENCES = (
    "The first chapter of the book begins on a cold morning in a small town by the sea.",
    "I watched this film with my family last night, and to my surprise",
    "To make a simple soup, you need an onion, two carrots and",
    "In 1969, two people walked on the Moon for the first time.",
)
RANDOM_TOKENS = 16  # in each prompt of random tokens


def read_prompts(path: str | Path, tokenizer: Tokenizer, vocabulary: int) -> Iterator[Prompt]:
    """The token ids of each prompt, in the file's order.

    A ``.txt`` file holds a prompt a line; a ``.jsonl`` file an object a line, with ``prompt_tokens`` (ids, as
    in a server's traffic log) or ``text``. Blank lines are passed over.

    Args:
        vocabulary: tokens the model knows.

    Raises:
        UserError: naming file and line for what cannot be read.
    """
    path = Path(path)
    if path.suffix not in (".txt", ".jsonl"):
        raise UserError(
            f"{path} is neither .txt (a prompt a line) nor .jsonl (objects with {TEXT} or {TOKENS})"
        )
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                content = line.rstrip("\r\n")
                if path.suffix == ".txt":
                    yield tuple(tokenizer.encode(content).ids)
                else:
                    yield _of_row(content, f"{path}:{number}", tokenizer, vocabulary)
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _of_row(line: str, place: str, tokenizer: Tokenizer, vocabulary: int) -> Prompt:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place}: not valid JSON ({error}); is the line cut off?") from None
    if isinstance(row, dict) and isinstance(row.get(TEXT), str):
        return tuple(tokenizer.encode(row[TEXT]).ids)
    tokens = row.get(TOKENS) if isinstance(row, dict) else None
    if not isinstance(tokens, list) or not tokens or not all(type(token) is int for token in tokens):
        raise UserError(f"{place}: expected an object with {TOKENS} (a list of ids) or {TEXT} (a string)")
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise UserError(f"{place}: token {token} is outside this model's vocabulary of {vocabulary}")
    return tuple(tokens)


def certified_prompts(prompts: Iterator[Prompt], *, length: int | None, longest: int) -> list[Prompt]:
    """What a certificate's loss is defined on, each once: copies of a prompt are no independent sequences.

    Args:
        length: the first so many tokens of the prompts that have them; ``None``: whole prompts.
        longest: whole prompts of more tokens leave no room for a continuation and are passed over.
    """
    cut = (prompt[:length] for prompt in prompts if length is None or len(prompt) >= length)
    return list(dict.fromkeys(prompt for prompt in cut if 0 < len(prompt) <= longest))


def made_prompts(count: int, vocabulary: int, tokenizer: Tokenizer | None) -> list[Prompt]:
    """The same ``count`` prompts every time: plain sentences if there is a tokenizer, then random tokens."""
    prompts = [] if tokenizer is None else [tuple(tokenizer.encode(text).ids) for text in SENTENCES[:count]]
    random = np.random.default_rng(0).integers(vocabulary, size=(count - len(prompts), RANDOM_TOKENS))
    return prompts + [tuple(row) for row in random.tolist()]
