"""The token cache: a corpus is built once, under a lock, and opened memory-mapped ever after.

An entry's name is a hash of all that decides its content: the source's bytes, the reading and splitting
settings, and the tokenizer. So a changed file or setting gets a new entry, and nothing is ever stale.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from rich.console import Console
from tokenizers import Tokenizer

from lit_eff.data.build import TOKEN_TYPE, plan_corpus, train_on_plan, write_corpus
from lit_eff.data.progress import Stages
from lit_eff.data.readers import TextFormat
from lit_eff.data.sources import open_source
from lit_eff.data.splits import SPLITS, Splits, check_split
from lit_eff.data.tokenizer import TokenizerConfig, load_tokenizer
from lit_eff.errors import UserError
from lit_eff.files import atomic_path, sha256_bytes

_FORMAT = 2


@dataclass(frozen=True)
class CorpusConfig:
    """All that decides a corpus. ``max_tokens`` cuts each document (classification); see the DataModules."""

    source: str
    form: TextFormat
    splits: Splits
    tokenizer: TokenizerConfig
    max_documents: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_documents is not None and self.max_documents < 1:
            raise UserError(
                f"data.max_documents is {self.max_documents}; expected at least 1, or null for all"
            )


class Documents(Sequence[NDArray[np.int32]]):
    """The token ids of each document of a split, memory-mapped, in a fixed random order."""

    def __init__(self, tokens: NDArray[np.int32], spans: NDArray[np.int64]) -> None:
        self.tokens = np.asarray(tokens)  # all of them laid end to end, in the order of the source
        self.starts = spans[:, 0]
        self.lengths = spans[:, 1]

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.int32]: ...
    @overload
    def __getitem__(self, index: slice) -> list[NDArray[np.int32]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.int32] | list[NDArray[np.int32]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start, length = self.starts[index], self.lengths[index]
        return self.tokens[start : start + length]


class Corpus:
    """An opened cache entry.

    Attributes:
        tokenizer, tokenizer_json: the tokenizer and its file's text.
        manifest: counts of documents and tokens a split, of what was dropped, and ``split_hashes``.
        folder: where it lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.tokenizer_json = (folder / "tokenizer.json").read_text(encoding="utf-8")
        self.tokenizer: Tokenizer = Tokenizer.from_str(self.tokenizer_json)
        self._documents = {name: self._open(name) for name in SPLITS}

    def _open(self, split: str) -> Documents:
        path = self.folder / f"{split}.tokens.bin"
        count = self.manifest["tokens"][split]
        if path.stat().st_size != count * TOKEN_TYPE.itemsize:
            raise ValueError(f"{path} is cut short")
        # An empty file cannot be mapped.
        tokens = np.memmap(path, TOKEN_TYPE, mode="r") if count else np.empty(0, TOKEN_TYPE)
        return Documents(tokens, np.load(self.folder / f"{split}.spans.npy"))

    def documents(self, split: str) -> Documents:
        """Raise UserError for an unknown or empty split."""
        documents = self._documents[check_split(split)]
        if not len(documents):
            total = sum(self.manifest["documents"].values())
            raise UserError(
                f"the {split} split is empty ({total} documents in all); "
                f"raise data.splits.{split} or give more documents"
            )
        return documents

    def labels(self, split: str) -> NDArray[np.int64]:
        """Class numbers in the order of :meth:`documents`."""
        labels: NDArray[np.int64] = np.load(self.folder / f"{check_split(split)}.labels.npy")
        return labels

    def summary(self) -> str:
        """One line for people: what was kept, what was dropped, what is where."""
        counts = self.manifest["documents"]
        dropped = [
            f"{self.manifest[key]:,} {what}"
            for key, what in (
                ("duplicates", "duplicates dropped"),
                ("conflicts", "of them with another label"),
                ("empty", "blank ones dropped"),
                ("beyond", "left out by data.max_documents"),
            )
            if self.manifest[key]
        ]
        kept = f"{sum(counts.values()):,} documents" + (f" ({', '.join(dropped)})" if dropped else "")
        splits = ", ".join(f"{name} {counts[name]:,}" for name in SPLITS)
        tokens = sum(self.manifest["tokens"].values())
        vocabulary = self.tokenizer.get_vocab_size()
        return f"{kept}: {splits}; {tokens:,} tokens of a vocabulary of {vocabulary:,}, in {self.folder}"


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/lit_eff``, and ``~/.cache/lit_eff`` where that is not set."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lit_eff"


def open_corpus(config: CorpusConfig, cache_dir: Path) -> Corpus:
    """The corpus of these settings: from the cache, or built into it.

    Processes may call this at the same time: one builds, the others wait and open what it wrote. An entry
    appears whole or not at all.

    Raises:
        UserError: from reading the source or the tokenizer, or when the cache cannot be written.
    """
    source = open_source(config.source, config.form)
    settings: dict[str, Any] = {
        "format": _FORMAT,
        "source": source.fingerprint(),
        "form": asdict(config.form),
        "splits": asdict(config.splits),
        "max_documents": config.max_documents,
        "max_tokens": config.max_tokens,
    }
    tokenizer = None
    if config.tokenizer.path is None:
        settings["tokenizer"] = asdict(config.tokenizer)
    else:
        tokenizer = load_tokenizer(config.tokenizer.path)
        settings["tokenizer"] = tokenizer.to_str()
    key = sha256_bytes(json.dumps(settings, sort_keys=True).encode())[:32]
    entry = cache_dir / key
    if (corpus := _opened(entry)) is not None:
        return corpus
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir / f"{key}.lock"):
            if (corpus := _opened(entry)) is not None:
                return corpus  # another process built it meanwhile
            for leftover in cache_dir.glob(f".{key}.*"):  # of a build that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            with Stages() as progress, atomic_path(entry) as folder:
                plan = plan_corpus(source, config.splits, config.max_documents, progress)
                tokenizer = tokenizer or train_on_plan(source, plan, config.tokenizer, progress)
                write_corpus(folder, source, plan, tokenizer, config.max_tokens, progress)
    except OSError as error:
        raise UserError(
            f"cannot write the token cache {cache_dir}: {error.strerror or error}; set data.cache_dir"
        ) from error
    return Corpus(entry)


def _opened(entry: Path) -> Corpus | None:
    """The entry, or None when there is none or it is damaged (it will be built again)."""
    if not entry.exists():
        return None
    try:
        return Corpus(entry)
    except Exception as error:  # whatever cannot be opened is not a whole entry
        Console(stderr=True).print(f"The token cache {entry} is damaged ({error}); building it again.")
        return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        Console(stderr=True).print("Another process is preparing this data; waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
