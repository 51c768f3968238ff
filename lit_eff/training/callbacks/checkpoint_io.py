"""Checkpoint files that are whole or absent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lit_eff.errors import UserError
from lit_eff.parallel.durable import publish, scratch_folder, write_failure


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written beside their place, synced to disk, then renamed.

    A kill or a full disk at any moment leaves the file that was there before. Lightning's own way
    holds the whole file in memory and does not sync. Remote paths (``s3://...``) go Lightning's way: object
    stores replace whole objects. Sharded checkpoints (folders) are
    :class:`~lit_eff.parallel.strategy.ShardedStrategy`'s.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write ``checkpoint`` with ``torch.save``.

        Raises:
            UserError: the disk is full or refuses to write; earlier checkpoints are untouched.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        if storage_options is not None:
            raise TypeError(f"{type(self).__name__} takes no storage_options")
        target = Path(path)
        scratch: Path | None = None
        try:
            scratch = scratch_folder(target)
            temporary = scratch / target.name
            # A Python file, not a path: torch then reports the system's own error (disk full, say).
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
            publish(temporary, target)
        except (OSError, RuntimeError) as error:
            failure = write_failure(target, error)
            if failure is None:
                raise
            raise failure from error
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """As Lightning's.

        Raises:
            UserError: ``path`` is a sharded checkpoint.
        """
        if Path(path).is_dir():
            raise UserError(
                f"{path} is a sharded checkpoint (a folder): resume with trainer=fsdp, or make a plain "
                f"one with python -m lit_eff.parallel.consolidate {path}"
            )
        return super().load_checkpoint(path, map_location, weights_only)
