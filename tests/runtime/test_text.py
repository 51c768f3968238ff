"""The text engine: usage counts, stop strings, end of text, no early exit without a certificate."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lit_eff.errors import UserError
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.claim import sentence
from lit_eff.runtime.decoding_config import DecodingConfig, draft_exit_index
from lit_eff.runtime.evidence import Candidate, Measured
from lit_eff.runtime.exit_rule import ExitRule, parse_thresholds
from lit_eff.runtime.sampling import SamplingParams
from lit_eff.runtime.summary import Summary
from lit_eff.runtime.text import TextChunk, TextEngine, TextRequest, end_tokens
from tests.runtime.fakes import byte_tokenizer, scripted_engine

MODES = ["autoregressive", "certified", "lossless"]
RULE = ExitRule(thresholds=(0.9, 0.9))


def complete(engine: TextEngine, **fields: object) -> tuple[str, list[TextChunk]]:
    prepared = engine.prepare(TextRequest(**{"prompt": "", "max_tokens": 200, **fields}))  # type: ignore[arg-type]
    chunks = list(engine.stream(prepared))
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    return "".join(chunk.text for chunk in chunks), chunks


def certificate(selected: int | None = 0) -> Certificate:
    measured = {"sequences": 400, "risk": 0.01, "layers_per_token": 2.5, "computed_layers_per_token": 2.9}
    threshold = None if selected is None else 0.9
    return Certificate(
        delta=0.25,
        epsilon=0.05,
        procedure="fixed_sequence",
        p_value="hoeffding_bentkus",
        candidates=(
            Candidate(threshold=0.9, risk=0.01, p_value=0.001, certified=selected == 0, layers_per_token=2.5),
        ),
        selected=selected,
        exit_layers=(1, 2, 3),
        thresholds=(threshold, threshold),
        measure="softmax_response",
        decay=None,
        horizon=16,
        kv_policy="deferred",
        dtype="float32",
        prompt_length=32,
        continuation_length=16,
        calibration=Measured(split_sha256="1" * 64, **measured),
        test=Measured(split_sha256="2" * 64, **measured),
        train_sha256="3" * 64,
        weights_sha256="4" * 64,
        tokenizer_sha256="5" * 64,
    )


@pytest.mark.parametrize("mode", ["autoregressive", "lossless"])
def test_text_ends_at_the_end_of_text_token(mode: str) -> None:
    text = "Das ist schön — 日本語 👩‍👩‍👧!"
    engine = scripted_engine(text, prompt="Hello: ")
    written, chunks = complete(engine, prompt="Hello: ", mode=mode, draft_exit=2)
    assert written == text
    assert chunks[-1].finish_reason == "stop"
    tokens = engine.tokenizer.encode(text, add_special_tokens=False).ids
    assert chunks[-1].completion_tokens == len(tokens) + 1  # the end of text counts
    assert not any("\ufffd" in chunk.text for chunk in chunks)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stop", ["two th", "o", "four.", "absent"])
def test_stop_strings_span_tokens_and_rounds(mode: str, stop: str) -> None:
    text = "one two three four."
    engine = scripted_engine(text, uncertified=ExitRule(thresholds=(None, None)))
    written, chunks = complete(engine, mode=mode, stop=(stop,), draft_exit=1)
    assert written == text.partition(stop)[0]
    assert chunks[-1].finish_reason == "stop"
    # Tokens are counted up to the one that completes the stop string, not those drafted after it.
    tokens = engine.tokenizer.encode(text, add_special_tokens=False).ids
    needed = next(
        (n for n in range(1, len(tokens) + 1) if stop in engine.tokenizer.decode(tokens[:n])), len(tokens) + 1
    )
    assert chunks[-1].completion_tokens == needed


def test_a_stop_string_ends_the_computation() -> None:
    engine = scripted_engine("aaaa.bbbbbbbbbbbbbbbbbbbbbb")
    complete(engine, stop=(".",))
    calls = len(engine.runner.segment_calls)  # type: ignore[attr-defined]
    stop_at = len(engine.tokenizer.encode("aaaa.", add_special_tokens=False).ids)
    assert calls <= 3 * (stop_at + 1)


def test_held_back_text_is_released_at_the_length_limit() -> None:
    engine = scripted_engine("xxxx")
    written, chunks = complete(engine, max_tokens=3, stop=("xxxxx",))
    assert chunks[-1].finish_reason == "length"
    assert written == engine.tokenizer.decode(
        engine.tokenizer.encode("xxxx", add_special_tokens=False).ids[:3]
    )


def test_prompts_may_be_tokens_and_an_empty_text_is_its_first_token() -> None:
    engine = scripted_engine("abc")
    assert engine.prepare(TextRequest("")).tokens.prompt_tokens == (0,)
    assert complete(engine, prompt=(0,))[0] == "abc"
    with pytest.raises(UserError, match="prompt is empty"):
        engine.prepare(TextRequest(()))


def test_certified_mode_needs_a_certificate_or_thresholds_set_by_hand() -> None:
    engine = scripted_engine("abc")
    with pytest.raises(UserError, match=r"needs a certificate.*--uncertified"):
        engine.prepare(TextRequest("", mode="certified"))
    uncertified = scripted_engine("abc", uncertified=RULE)
    prepared = uncertified.prepare(TextRequest("", mode="certified"))
    assert prepared.tokens.exit_rule == RULE
    assert "Uncertified" in uncertified.promise(prepared)
    # A rule set by hand is said to be so even where a certificate is at hand.
    both = scripted_engine("abc", uncertified=RULE, certificate=certificate())
    assert "Uncertified" in both.promise(both.prepare(TextRequest("", mode="certified")))


def test_the_certificate_gives_the_rule_and_says_what_it_covers() -> None:
    engine = scripted_engine("abc", certificate=certificate())
    greedy = engine.prepare(TextRequest("", mode="certified"))
    assert greedy.tokens.exit_rule == ExitRule(thresholds=(0.9, 0.9), horizon=16)
    assert engine.promise(greedy) == sentence(certificate())
    sampled = engine.prepare(TextRequest("", mode="certified", sampling=SamplingParams(temperature=1.0)))
    assert "covers greedy" in engine.promise(sampled)


def test_a_certificate_that_never_exits_runs_every_layer() -> None:
    engine = scripted_engine("abc", certificate=certificate(selected=None))
    _, chunks = complete(engine, mode="certified")
    assert {chunk.round.exit_index for chunk in chunks} == {2}
    assert engine.runner.head_calls == [(2, 1)] * len(chunks)  # type: ignore[attr-defined]


def test_the_bundle_decides_what_a_request_leaves_open() -> None:
    engine = scripted_engine("abc", decoding=DecodingConfig(draft_exit=2, draft_length=7))
    prepared = engine.prepare(TextRequest("", mode="lossless")).tokens
    assert (prepared.draft_exit, prepared.draft_length) == (1, 7)
    prepared = engine.prepare(TextRequest("", mode="lossless", draft_exit=1, draft_length=0)).tokens
    assert (prepared.draft_exit, prepared.draft_length) == (0, 0)
    with pytest.raises(UserError, match=r"after layer 3.*\[1, 2\]"):
        engine.prepare(TextRequest("", mode="lossless", draft_exit=3))


def test_auto_draft_exit_is_nearest_to_a_quarter() -> None:
    assert draft_exit_index("auto", (2, 4, 6, 8)) == 0
    assert draft_exit_index("auto", (4, 8, 16, 32)) == 1
    assert draft_exit_index(6, (2, 4, 6, 8)) == 2
    with pytest.raises(UserError, match="has none"):
        draft_exit_index("auto", (8,))


def test_summary_counts_what_the_rounds_did() -> None:
    engine = scripted_engine("abcdefghijkl", uncertified=RULE)
    _, chunks = complete(engine, mode="certified", max_tokens=8)
    summary = Summary.of((chunk.round for chunk in chunks), engine.runner.exit_layers)
    assert (summary.tokens, summary.rounds, summary.acceptance) == (8, 8, None)
    assert summary.exits == {1: 8}
    assert summary.layers_per_token == 1.0
    _, chunks = complete(engine, mode="lossless", max_tokens=8, draft_exit=1, draft_length=3)
    summary = Summary.of((chunk.round for chunk in chunks), engine.runner.exit_layers)
    assert summary.tokens == 8
    assert summary.accepted == summary.tokens - summary.rounds
    assert summary.acceptance == summary.accepted / summary.drafted < 1


def test_end_tokens() -> None:
    tokenizer = byte_tokenizer()
    assert end_tokens(tokenizer, None) == {0}
    assert end_tokens(tokenizer, ("!", "<|endoftext|>")) == {0, tokenizer.token_to_id("!")}
    assert end_tokens(tokenizer, ()) == frozenset()
    with pytest.raises(UserError, match="'<eot>'"):
        end_tokens(tokenizer, ("<eot>",))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: parse_thresholds("0.8,x", 2), "'x'"),
        (lambda: parse_thresholds("0.8,0.7,0.6", 2), "3 exit thresholds"),
        (lambda: DecodingConfig(draft_length=-1), "draft_length is -1"),
        (lambda: DecodingConfig(mode="certifed"), "did you mean 'certified'"),  # type: ignore[arg-type]
        (lambda: DecodingConfig(top_p=2.0), r"decoding\.top_p is 2.0"),
        (lambda: DecodingConfig.from_dict({"temprature": 1}), "did you mean 'temperature'"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        make()


def test_thresholds_as_typed() -> None:
    assert parse_thresholds("0.8", 3) == (0.8, 0.8, 0.8)
    assert parse_thresholds("never, 0.5", 2) == (None, 0.5)
    config = DecodingConfig.from_dict({"mode": "lossless", "stop_tokens": ["</s>"]})
    assert config.stop_tokens == ("</s>",)
