"""A write that is killed or runs out of disk leaves the previous checkpoint as it was."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_eff.errors import UserError
from lit_eff.parallel import durable
from lit_eff.training.callbacks import AtomicCheckpointIO
from tests.training.callbacks.tiny import make_data, make_module, make_trainer, same

OLD = {"weights": torch.arange(1000), "step": 1}


def large(megabytes: int = 8) -> dict[str, Any]:
    return {f"part_{index}": torch.randn(1 << 18) for index in range(megabytes)}


def only_old(path: Path) -> bool:
    """The folder holds nothing but the old checkpoint, and that reads back."""
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    return same(torch.load(path, weights_only=True), OLD) == []


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """A write beyond ``size`` bytes fails with the system's error, half-way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_round_trip_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "deep" / "last.ckpt"
    io.save_checkpoint({"step": 0}, path)
    io.save_checkpoint(OLD, path)
    assert same(io.load_checkpoint(path), OLD) == []
    assert only_old(path)


def save_for_ever(path: Path) -> None:
    while True:
        AtomicCheckpointIO().save_checkpoint(large(), path)


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03])
def test_killed_while_writing(tmp_path: Path, delay: float) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(OLD, path)
    writer = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(path,), daemon=True)
    writer.start()
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".*/*")):  # the write has begun
        assert time.monotonic() < deadline
    time.sleep(delay)
    os.kill(writer.pid or 0, signal.SIGKILL)
    writer.join()
    found = torch.load(path, weights_only=True)  # the old one or, when the kill came late, a whole new one
    assert same(found, OLD) == [] or set(found) == set(large())
    assert [entry.name for entry in tmp_path.glob("*.ckpt")] == ["last.ckpt"]


def test_write_that_fails_half_way(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(OLD, path)
    with (
        files_limited_to(3_000_000),
        pytest.raises(UserError, match=r"cannot write .*last\.ckpt: File too large"),
    ):
        AtomicCheckpointIO().save_checkpoint(large(), path)
    assert only_old(path)


def test_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        path = disk / "last.ckpt"
        AtomicCheckpointIO().save_checkpoint(OLD, path)
        with pytest.raises(UserError, match="No space left on device"):
            AtomicCheckpointIO().save_checkpoint(large(), path)
        assert only_old(path)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_training_stops_with_the_line_and_the_earlier_checkpoint(tmp_path: Path, text: Path) -> None:
    kept = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=2, filename="{step}")
    make_trainer(tmp_path, kept, max_steps=2).fit(make_module(), datamodule=make_data(text))
    again = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=2, filename="{step}")
    trainer = make_trainer(tmp_path, again, max_steps=4, logger=False)
    saved = tmp_path / "kept" / "step=2.ckpt"
    with files_limited_to(2000), pytest.raises(UserError, match=r"step=4\.ckpt"):
        trainer.fit(make_module(), datamodule=make_data(text), ckpt_path=saved)
    assert list(saved.parent.iterdir()) == [saved]
    assert torch.load(saved, weights_only=True)["global_step"] == 2


@pytest.mark.parametrize("can_exchange", [True, False])
def test_folders_replace_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool) -> None:
    if not can_exchange:
        monkeypatch.setattr(durable.ctypes, "CDLL", lambda *args, **settings: object())
    path = tmp_path / "last.ckpt"
    path.mkdir()
    (path / "old").write_text("old")
    scratch = durable.scratch_folder(path)
    (scratch / path.name / "inner").mkdir(parents=True)
    (scratch / path.name / "inner" / "new").write_text("new")
    durable.publish(scratch / path.name, path)
    assert [entry.name for entry in path.rglob("*")] == ["inner", "new"]


def test_what_a_kill_left_is_removed_by_a_later_write(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    dead, alive = durable.scratch_folder(path), durable.scratch_folder(path)
    for folder in (dead, alive):
        (folder / "last.ckpt").write_bytes(b"half")
    (tmp_path / ".hidden.ckpt.md").write_text("not ours")
    for entry in (dead / "last.ckpt", dead):
        os.utime(entry, (0, 0))
    AtomicCheckpointIO().save_checkpoint(OLD, path)
    assert not dead.exists()
    assert alive.exists()
    assert (tmp_path / ".hidden.ckpt.md").exists()
