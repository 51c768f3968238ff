"""What a calibration has generated so far, on disk: one that is interrupted goes on where it was.

Generation is nearly all the time a calibration takes. Each batch of prompts becomes a file as soon as all
rules are through with it, in a folder named by a digest of everything the tokens depend on, so that a run
that differs in any of it finds nothing.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

import lit_eff
from lit_eff.decoding.batched import Continuations
from lit_eff.files import atomic_path, sha256_bytes
from lit_eff.models.checkpoint import LoadedCheckpoint
from lit_eff.runtime.exit_rule import ExitRule


@dataclass(frozen=True)
class WorkFolder:
    """Holds the parts of one calibration, until its certificate is written.

    Attributes:
        path: made when the first part is kept.
        found: called with (stage, sequences kept from before, sequences in all) where there are any.
    """

    path: Path
    found: Callable[[str, int, int], None] | None = None

    def parts(self, stage: str, digest: str, sequences: int) -> Parts:
        """The parts of a stage, those kept before included.

        Args:
            digest: of all that the continuations depend on, see :func:`digest_of`.
        """
        parts = Parts(self.path / f"{stage}-{digest}")
        kept = parts.sequences()
        if kept and self.found is not None:
            self.found(stage, kept, sequences)
        return parts

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


@dataclass(frozen=True)
class Parts:
    """Files of continuations, one a batch, named by the batch's first prompt and number of prompts."""

    folder: Path

    def sequences(self) -> int:
        """Prompts kept so far."""
        return sum(int(path.stem.partition("+")[2]) for path in self.folder.glob("*+*.npz"))

    def load(self, first: int, count: int) -> Continuations | None:
        """The part of prompts ``first`` to ``first + count``; ``None`` where it is missing or damaged."""
        try:
            with np.load(self._path(first, count)) as arrays:  # a zip archive, whose reader checks its CRCs
                return Continuations(arrays["tokens_KBN"], arrays["exits_KBN"], int(arrays["rows_run"]))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
            return None

    def save(self, first: int, part: Continuations) -> None:
        with (
            atomic_path(self._path(first, part.tokens_KBN.shape[1])) as temporary,
            temporary.open("wb") as file,
        ):
            np.savez_compressed(
                file, tokens_KBN=part.tokens_KBN, exits_KBN=part.exits_KBN, rows_run=part.rows_run
            )

    def _path(self, first: int, count: int) -> Path:
        return self.folder / f"{first:07}+{count}.npz"


def digest_of(
    loaded: LoadedCheckpoint,
    prompts: Sequence[Sequence[int]],
    rules: Sequence[ExitRule],
    *,
    steps: int,
    batch_size: int,
) -> str:
    """SHA-256 of all that :func:`lit_eff.decoding.batched.generate_with_exits` depends on.

    Device and versions are part of it, since rounding is theirs, and so is the batch size.
    """
    settings = {
        "weights": loaded.weights_sha256,
        "model": loaded.model.config.to_dict(),
        "device": str(next(loaded.model.parameters()).device),
        "versions": [lit_eff.__version__, torch.__version__],
        "rules": [asdict(rule) for rule in rules],
        "steps": steps,
        "batch_size": batch_size,
    }
    return sha256_bytes(
        json.dumps(settings, sort_keys=True).encode(),
        *(np.asarray(prompt, "<i8").tobytes() for prompt in prompts),
    )
