"""Incremental text: whole characters, pieces that join to the whole, stop strings across any border."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from lit_eff.errors import UserError
from lit_eff.runtime.detokenize import Detokenizer, StopStrings
from tests.runtime.fakes import SAMPLE_TEXT, byte_tokenizer

TOKENS = st.lists(st.integers(0, byte_tokenizer().get_vocab_size() - 1), max_size=40)


def pieces(tokenizer: Tokenizer, tokens: list[int], prompt: tuple[int, ...] = ()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]


def test_characters_of_several_tokens_come_whole() -> None:
    tokenizer = byte_tokenizer()
    tokens = tokenizer.encode(SAMPLE_TEXT, add_special_tokens=False).ids
    found = pieces(tokenizer, tokens)
    assert "".join(found) == SAMPLE_TEXT
    assert not any("\ufffd" in piece for piece in found)
    assert "" in found  # some characters did span tokens


@given(tokens=TOKENS)
def test_pieces_join_to_the_decoding_of_the_whole(tokens: list[int]) -> None:
    """Any tokens, also bytes that are no UTF-8 and special tokens in the middle."""
    tokenizer = byte_tokenizer()
    assert "".join(pieces(tokenizer, tokens)) == tokenizer.decode(tokens)


@given(text=st.text(max_size=30), cut=st.integers(0, 60))
def test_any_text_round_trips_after_any_prompt(text: str, cut: int) -> None:
    tokenizer = byte_tokenizer()
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    prompt, rest = tuple(tokens[:cut]), tokens[cut:]
    if not tokenizer.decode(list(prompt)).endswith("\ufffd"):  # not in the middle of a character
        assert "".join(pieces(tokenizer, rest, prompt)) == text[len(tokenizer.decode(list(prompt))) :]


def test_an_unfinished_character_is_shown_at_the_end_only() -> None:
    tokenizer = byte_tokenizer()
    first_byte = tokenizer.encode("🧵", add_special_tokens=False).ids[0]
    assert pieces(tokenizer, [first_byte]) == ["", "\ufffd"]


def test_a_leading_space_survives_after_a_prompt() -> None:
    """Sentencepiece decoders drop the space of the first token they see."""
    tokenizer = Tokenizer(models.WordLevel({"▁hello": 0, "▁world": 1}, unk_token="▁hello"))
    tokenizer.decoder = decoders.Metaspace()
    assert "".join(pieces(tokenizer, [1, 0], (0,))) == " world hello"


def stopped_text(parts: list[str], stops: list[str]) -> tuple[str, bool]:
    matcher, shown = StopStrings(stops), ""
    for part in parts:
        text, stopped = matcher.push(part)
        shown += text
        if stopped:
            return shown, True
    return shown + matcher.flush(), False


def reference(text: str, stops: list[str]) -> tuple[str, bool]:
    """Letter by letter: at the first that completes a stop string, cut before the longest such."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(
    parts=st.lists(st.text("ab\n", max_size=4), max_size=10),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_do_not_depend_on_borders(parts: list[str], stops: list[str]) -> None:
    assert stopped_text(parts, stops) == reference("".join(parts), stops)


@given(
    parts=st.lists(st.text("ab", max_size=3), max_size=8),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=2),
)
def test_what_was_shown_is_never_taken_back_nor_held_longer_than_needed(
    parts: list[str], stops: list[str]
) -> None:
    matcher, shown, seen = StopStrings(stops), "", ""
    for part in parts:
        text, stopped = matcher.push(part)
        shown, seen = shown + text, seen + part
        if stopped:
            break
        held = seen[len(shown) :]
        assert shown + held == seen
        assert not held or any(stop.startswith(held) for stop in stops)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UserError, match="empty"):
        StopStrings(["x", ""])
