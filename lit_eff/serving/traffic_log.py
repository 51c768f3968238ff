"""What was asked, kept for a later calibration: one JSON object a line, only where the operator wants it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from lit_eff.errors import UserError
from lit_eff.runtime.prompts import TOKENS

_log = logging.getLogger("uvicorn.error")


class TrafficLog:
    """Appends prompts to a file that :func:`lit_eff.runtime.prompts.read_prompts` reads.

    The loss of a certificate is a function of the prompt, so nothing else is kept: no answer, time or client.

    Raises:
        UserError: for a path that cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab+")
            self._end_last_line()
        except OSError as error:
            raise UserError(
                f"cannot write traffic log {path}: {error.strerror or error}; choose another file"
            ) from None

    def write(self, prompt_tokens: Sequence[int]) -> None:
        """Append a prompt and hand it to the system; a failure is logged, and serving goes on."""
        try:
            self._file.write(json.dumps({TOKENS: list(prompt_tokens)}).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            _log.error("cannot write traffic log %s: %s", self._path, error)

    def close(self) -> None:
        self._file.close()

    def _end_last_line(self) -> None:
        """A line that an earlier server did not finish stays one bad line."""
        if self._file.tell():
            self._file.seek(-1, 2)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")
