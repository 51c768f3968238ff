"""Tokens to text while they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from lit_eff.errors import UserError

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what a decoder shows for an incomplete or invalid byte sequence
_PROMPT_TAIL = 8


class Detokenizer:
    """Incremental decoding; the pieces join to the decoding of the whole.

    Decoders look at the token before (leading spaces) and a character may span tokens (byte-level BPE), so a
    window of tokens is decoded with and without the newest, and text is released once it ends in a whole
    character.

    Args:
        tokenizer: its special tokens are skipped.
        prompt_tokens: what comes before; only its last tokens are read.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_tokens: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window = list(prompt_tokens[-_PROMPT_TAIL:])
        self._released = len(self._window)  # tokens of the window whose text is out

    def push(self, token: int) -> str:
        """The text that ``token`` completes, possibly empty."""
        self._window.append(token)
        text = self._held()
        if text.endswith(_REPLACEMENT):
            return ""  # maybe the middle of a character
        return self._release(text)

    def flush(self) -> str:
        """What is still held at the end: an incomplete character, shown as the decoder shows it."""
        return self._release(self._held())

    def _held(self) -> str:
        before = self._decode(self._window[: self._released])
        return self._decode(self._window)[len(before) :]

    def _release(self, text: str) -> str:
        if text:
            self._window = self._window[self._released :]
            self._released = len(self._window)
        return text

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


class StopStrings:
    """Ends a text before the first stop string, wherever the borders between its pieces fall.

    Of several, the one that is complete first counts (the longest of those), so the result is a function of
    the text alone. Text that may yet turn out to begin a stop string is held back.

    Raises:
        UserError: for an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise UserError("a stop string is empty; expected at least one character")
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that may be shown, and whether a stop string was found (nothing may follow then)."""
        self._held += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            shown, self._held = self._held[: min(found)[1]], ""
            return shown, True
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(shown) :]
        return shown, False

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins ``stop``."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
