"""Checkpoints that survive a kill, a full disk or a power cut: written aside, synced, then renamed."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import time
from pathlib import Path

from lit_eff.errors import UserError

_ABANDONED_AFTER = 3600.0  # seconds without a write: a live writer touches its files all the time
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def scratch_folder(path: Path) -> Path:
    """A new hidden folder beside ``path``; one that a killed process left there is removed on the way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(".*.ckpt.????????"):
        newest = max((entry.stat().st_mtime for entry in [left, *left.rglob("*")]), default=0.0)
        if time.time() - newest > _ABANDONED_AFTER:
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f".{path.stem}.ckpt.", dir=path.parent))


def publish(temporary: Path, path: Path) -> None:
    """Sync ``temporary`` (a file or a folder) to disk and give it the name ``path``, replacing what is there.

    On Linux, readers see the old or the new one at every moment. Where the system cannot exchange two names,
    an old *folder* is absent for the instant between two renames.
    """
    for entry in [*temporary.rglob("*"), temporary]:
        _sync(entry)
    if path.exists() and (path.is_dir() or temporary.is_dir()):
        try:
            _exchange(temporary, path)
        except (AttributeError, OSError):
            os.rename(path, temporary.with_name("previous"))
            os.rename(temporary, path)
    else:
        os.replace(temporary, path)
    _sync(path.parent)


def write_failure(path: Path, error: BaseException) -> UserError | None:
    """The one line for a checkpoint that could not be written, if ``error`` comes from the file system.

    torch's zip writer wraps the system's error in one of its own, so the whole chain is searched.
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    if found is None:
        return None
    free = shutil.disk_usage(path.parent).free / 1e6
    return UserError(
        f"cannot write checkpoint {path}: {found.strerror or found} ({free:.0f} MB free there); earlier "
        "checkpoints are intact: make room and resume with --ckpt_path"
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> None:
    """Swap two names in one step (renameat2, Linux 3.15)."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), "renameat2 cannot exchange names here")
