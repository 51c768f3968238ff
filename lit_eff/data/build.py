"""One corpus, once: read, drop duplicates, split, train the tokenizer, encode, write a folder of tokens.

The source is read three times rather than held in memory; only digests and labels are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from lit_eff.data.progress import Stages
from lit_eff.data.sources import Source
from lit_eff.data.splits import SPLITS, Splits, content_digest, shuffled_key, split_hash
from lit_eff.data.tokenizer import TokenizerConfig, train_tokenizer
from lit_eff.errors import UserError

TOKEN_TYPE = np.dtype("<i4")
_ENCODE_TOGETHER = 1024  # documents handed to the tokenizer's threads at once


@dataclass
class Plan:
    """What the first reading decides.

    Attributes:
        members: for each split, the positions in the source of its documents, in their fixed random order.
        digests, labels: by position in the source, for the documents that are kept.
        class_names: the classes in the order of their numbers; empty without labels.
        documents, duplicates, conflicts, empty, beyond: documents kept; dropped as duplicates, those of the
            duplicates that carried another label; dropped as blank; left out by ``max_documents``.
    """

    members: dict[str, list[int]] = field(default_factory=dict)
    digests: dict[int, bytes] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    documents: int = 0
    duplicates: int = 0
    conflicts: int = 0
    empty: int = 0
    beyond: int = 0


def plan_corpus(source: Source, splits: Splits, max_documents: int | None, progress: Stages) -> Plan:
    """Read every document and decide which are kept, and in which split.

    Raises:
        UserError: from the source, or when no document is left to train on.
    """
    plan = Plan()
    first: dict[bytes, int] = {}
    for index, record in enumerate(progress.count(source.records(), "Reading documents")):
        text = record.text.strip()
        if not text:
            plan.empty += 1
            continue
        digest = content_digest(text)
        if digest in first:
            plan.duplicates += 1
            plan.conflicts += plan.labels.get(first[digest]) != record.label
            continue
        first[digest] = index
        if record.label is not None:
            plan.labels[index] = record.label
    # The digest's order is random and does not change with the files' order: a prefix is a fair sample.
    kept = sorted(first, key=shuffled_key)[:max_documents]
    plan.beyond = len(first) - len(kept)
    plan.documents = len(kept)
    plan.members = {name: [] for name in SPLITS}
    for digest in kept:
        plan.digests[first[digest]] = digest
        plan.members[SPLITS[splits.assign(digest)]].append(first[digest])
    plan.class_names = source.class_names or _in_order(
        {plan.labels[i] for i in plan.digests if i in plan.labels}
    )
    if not plan.members["train"]:
        raise UserError(
            f"none of the {plan.documents} documents falls into the train split; give more documents "
            "(a txt file is one, unless data.txt_unit is paragraph or line)"
        )
    return plan


def _in_order(names: set[str]) -> tuple[str, ...]:
    numbers = all(re.fullmatch(r"-?\d+", name) for name in names)
    return tuple(sorted(names, key=int if numbers else None))


def train_on_plan(source: Source, plan: Plan, config: TokenizerConfig, progress: Stages) -> Tokenizer:
    """The tokenizer, trained on the train split alone."""
    chosen = set(plan.members["train"][: config.training_documents])
    texts = (text for index, text in _kept_texts(source, plan) if index in chosen)
    return train_tokenizer(texts, config, total=len(chosen), progress=progress)


def _kept_texts(source: Source, plan: Plan) -> Iterator[tuple[int, str]]:
    for index, record in enumerate(source.records()):
        if index in plan.digests:
            yield index, record.text.strip()


def write_corpus(
    folder: Path, source: Source, plan: Plan, tokenizer: Tokenizer, max_tokens: int | None, progress: Stages
) -> None:
    """Encode the kept documents and write ``folder``: tokenizer.json, manifest.json and for each split

    - ``SPLIT.tokens.bin``: int32 token ids of its documents, laid end to end as the source has them;
    - ``SPLIT.spans.npy``: int64 (documents, 2), first token and length of each, in the fixed random order;
    - ``SPLIT.labels.npy``: int64 class numbers in the same order, when there are labels.

    Args:
        max_tokens: documents are cut to this many tokens, special ones included; None keeps them whole.
    """
    folder.mkdir()
    split_of = {index: name for name, members in plan.members.items() for index in members}
    spans = dict.fromkeys(plan.digests, (0, 0))
    written = dict.fromkeys(SPLITS, 0)
    tokenizer.encode_special_tokens = True  # "<|endoftext|>" inside a document is text, not its end
    if max_tokens is not None:
        tokenizer.enable_truncation(max_tokens)
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {
            name: stack.enter_context((folder / f"{name}.tokens.bin").open("wb")) for name in SPLITS
        }
        texts = progress.count(_kept_texts(source, plan), "Encoding documents", plan.documents)
        while batch := list(islice(texts, _ENCODE_TOGETHER)):
            encoded = tokenizer.encode_batch_fast([text for _, text in batch])
            for (index, _), encoding in zip(batch, encoded, strict=True):
                name = split_of[index]
                files[name].write(np.asarray(encoding.ids, dtype=TOKEN_TYPE).tobytes())
                spans[index] = (written[name], len(encoding.ids))
                written[name] += len(encoding.ids)
    tokenizer.encode_special_tokens = False
    tokenizer.no_truncation()
    for name, members in plan.members.items():
        table = np.array([spans[index] for index in members], dtype=np.int64).reshape(-1, 2)
        np.save(folder / f"{name}.spans.npy", table)
        if plan.class_names:
            np.save(folder / f"{name}.labels.npy", _class_numbers(plan, members))
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    manifest = {
        "documents": {name: len(members) for name, members in plan.members.items()},
        "tokens": written,
        "duplicates": plan.duplicates,
        "conflicts": plan.conflicts,
        "empty": plan.empty,
        "beyond": plan.beyond,
        "class_names": list(plan.class_names),
        "split_hashes": {
            name: split_hash(plan.digests[index] for index in members)
            for name, members in plan.members.items()
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _class_numbers(plan: Plan, members: list[int]) -> NDArray[np.int64]:
    numbers = {name: number for number, name in enumerate(plan.class_names)}
    return np.array([numbers[plan.labels[index]] for index in members], dtype=np.int64)
