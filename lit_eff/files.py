"""Files that are either whole or absent: write to a temporary name, then rename."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` for a file or a folder; rename it on success.

    An existing file is replaced. An existing folder is replaced too (moved aside first), so readers see
    the old one or the new one. On any exception the temporary is removed and ``path`` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary = scratch / path.name
    try:
        yield temporary
        previous = scratch / "previous"
        try:
            if path.is_dir() and not path.is_symlink():  # a full folder cannot be renamed over
                os.replace(path, previous)
            os.replace(temporary, path)
        except BaseException:
            if previous.exists() and not path.exists():
                os.replace(previous, path)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_bytes(*parts: bytes) -> str:
    """Hexadecimal SHA-256 of the concatenated parts, each preceded by its length."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
