"""The three modes over a tiny transformer: identities, deferred KV, stops, limits, accounting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_eff.errors import UserError
from lit_eff.runtime.confidence import LOGIT_MEASURES
from lit_eff.runtime.decode import GenerateRequest, Round, generate
from lit_eff.runtime.exit_rule import ExitRule
from lit_eff.runtime.sampling import SamplingParams, greedy_token
from tests.runtime.fakes import TinyTransformer, segment_sizes

PROMPT = (3, 1, 4, 1)
SAMPLED = SamplingParams(temperature=1.0, top_p=0.95, seed=11)
PENALISED = SamplingParams(
    repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.6, logit_bias={2: 0.5}
)


def run(runner: TinyTransformer, **fields: object) -> tuple[list[int], list[Round]]:
    request = GenerateRequest(**{"prompt_tokens": PROMPT, "max_tokens": 12, **fields})  # type: ignore[arg-type]
    rounds = list(generate(runner, request))
    return [token for one in rounds for token in one.tokens], rounds


def never(runner: TinyTransformer) -> ExitRule:
    return ExitRule(thresholds=(None,) * (len(runner.exit_layers) - 1))


def test_autoregressive_is_the_full_model_one_token_at_a_time() -> None:
    runner = TinyTransformer()
    tokens, rounds = run(runner)
    history = list(PROMPT)
    for token in tokens:
        assert token == runner.full_logits(history, 2)[-1].argmax()
        history.append(token)
    assert [one.exit_index for one in rounds] == [2] * 12
    assert [one.finish_reason for one in rounds] == [None] * 11 + ["length"]


@pytest.mark.parametrize("params", [SamplingParams(), PENALISED], ids=["plain", "penalties"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("length", range(6))
@pytest.mark.parametrize("exit_index", [0, 1])
def test_greedy_lossless_equals_autoregressive(
    exit_index: int, length: int, seed: int, params: SamplingParams
) -> None:
    runner = TinyTransformer(seed=seed)
    expected, _ = run(runner, max_tokens=20, sampling=params)
    tokens, rounds = run(
        runner, max_tokens=20, sampling=params, mode="lossless", draft_exit=exit_index, draft_length=length
    )
    assert tokens == expected
    for one in rounds:
        assert one.tokens[: one.accepted] == one.drafted[: one.accepted]
        assert len(one.tokens) == one.accepted + 1
        assert len(one.drafted) <= length


def test_the_tiny_model_both_accepts_and_rejects() -> None:
    """Otherwise the identities above would say little."""
    accepted = drafted = 0
    for seed in range(4):
        _, rounds = run(
            TinyTransformer(seed=seed), max_tokens=20, mode="lossless", draft_exit=1, draft_length=3
        )
        accepted += sum(one.accepted for one in rounds)
        drafted += sum(len(one.drafted) for one in rounds)
    assert 0.2 < accepted / drafted < 0.9


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 50),
    stops=st.frozensets(st.integers(0, 6), min_size=1, max_size=3),
    exit_index=st.integers(0, 1),
    length=st.integers(0, 5),
    max_tokens=st.integers(1, 30),
)
def test_stop_tokens_inside_an_accepted_run(
    seed: int, stops: frozenset[int], exit_index: int, length: int, max_tokens: int
) -> None:
    runner = TinyTransformer(seed=seed, deep_scale=0.3)
    shared = {"stop_tokens": stops, "max_tokens": max_tokens}
    expected, plain = run(runner, **shared)
    tokens, rounds = run(runner, mode="lossless", draft_exit=exit_index, draft_length=length, **shared)
    assert tokens == expected
    assert rounds[-1].finish_reason == plain[-1].finish_reason
    assert not stops & set(tokens[:-1])
    for one in rounds:
        assert one.tokens[: one.accepted] == one.drafted[: one.accepted]


def test_a_stop_among_the_drafts_ends_without_a_token_of_the_target() -> None:
    """A deep part that changes nothing accepts every draft, so the stop is a draft for certain."""
    runner = TinyTransformer(deep_scale=0.0)
    free, _ = run(runner)
    stop = free[2]
    first = free.index(stop)
    tokens, rounds = run(runner, mode="lossless", draft_length=first + 2, stop_tokens=frozenset({stop}))
    assert tokens == free[: first + 1]
    assert len(rounds) == 1
    assert rounds[0].accepted == len(tokens)
    assert rounds[0].drafted == tuple(tokens)  # drafting past a stop would be work for nothing
    assert rounds[0].finish_reason == "stop"


def test_an_identical_draft_accepts_everything_greedy_and_sampled() -> None:
    for params in (SamplingParams(), SAMPLED, replace(SAMPLED, repetition_penalty=1.5)):
        runner = TinyTransformer(deep_scale=0.0)
        tokens, rounds = run(runner, mode="lossless", draft_length=3, sampling=params, max_tokens=16)
        assert [one.accepted for one in rounds] == [len(one.drafted) for one in rounds] == [3, 3, 3, 3]
        assert len(tokens) == 16


@pytest.mark.parametrize("params", [SamplingParams(), SAMPLED, replace(SAMPLED, presence_penalty=0.5)])
def test_no_drafts_and_no_exits_are_autoregression(params: SamplingParams) -> None:
    """Token for token at the same seed: each then draws once a token, from the same distribution."""
    runner = TinyTransformer()
    expected, plain = run(runner, sampling=params)
    lossless, rounds = run(runner, sampling=params, mode="lossless", draft_length=0)
    certified, certified_rounds = run(runner, sampling=params, mode="certified", exit_rule=never(runner))
    assert lossless == certified == expected
    work = [(one.layer_launches, one.layer_tokens) for one in plain]
    assert [(one.layer_launches, one.layer_tokens) for one in rounds] == work
    assert [(one.layer_launches, one.layer_tokens) for one in certified_rounds] == work
    assert {one.exit_index for one in certified_rounds} == {2}


@pytest.mark.parametrize("mode", ["autoregressive", "certified", "lossless"])
def test_seeds_reproduce(mode: str) -> None:
    runner = TinyTransformer()
    rule = ExitRule(thresholds=(0.2, 0.2))

    def tokens(seed: int | None) -> list[int]:
        params = SamplingParams(temperature=1.5, seed=seed)
        return run(runner, mode=mode, exit_rule=rule, sampling=params, max_tokens=20)[0]

    assert tokens(5) == tokens(5)
    assert len({tuple(tokens(seed)) for seed in range(5)}) > 1
    assert len({tuple(tokens(None)) for _ in range(5)}) > 1


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_deferred_kv_equals_full_recomputation(seed: int, threshold: float) -> None:
    """Reference: for each token, every exit's logits from a fresh pass over all tokens so far; bitwise."""
    runner = TinyTransformer(seed=seed)
    rule = ExitRule(
        measure="max_probability", thresholds=(threshold, threshold / 2 + 0.2), decay=4.0, horizon=16
    )
    tokens, rounds = run(runner, mode="certified", exit_rule=rule, max_tokens=16)
    history, expected, exits = list(PROMPT), [], []
    for t in range(16):
        for e in range(3):
            logits_V = runner.full_logits(history, e)[-1]
            if e == 2 or rule.should_exit(e, LOGIT_MEASURES[rule.measure](logits_V), t):
                break
        exits.append(e)
        expected.append(greedy_token(logits_V, SamplingParams()))
        history.append(expected[-1])
    assert tokens == expected
    assert [one.exit_index for one in rounds] == exits


def test_exits_are_mixed_in_the_deferred_test() -> None:
    exits = set()
    for seed in range(3):
        rule = ExitRule(measure="max_probability", thresholds=(0.5, 0.45))
        exits |= {
            one.exit_index for one in run(TinyTransformer(seed=seed), mode="certified", exit_rule=rule)[1]
        }
    assert exits == {0, 1, 2}


@pytest.mark.parametrize("mode", ["autoregressive", "certified", "lossless"])
def test_work_is_counted_and_never_beyond_the_full_model(mode: str) -> None:
    runner = TinyTransformer(context=40)
    sizes = segment_sizes(runner.exit_layers)
    request = GenerateRequest(
        prompt_tokens=PROMPT,
        max_tokens=24,
        mode=mode,  # type: ignore[arg-type]
        exit_rule=ExitRule(measure="max_probability", thresholds=(0.5, 0.45)),
        draft_length=3,
    )
    slots_run: set[tuple[int, int]] = set()
    for one in generate(runner, request):
        calls, runner.segment_calls = runner.segment_calls, []
        assert one.layer_launches == sum(sizes[e] for e, _, _ in calls)
        assert one.layer_tokens == sum(sizes[e] * count for e, _, count in calls)
        if one.exit_index is not None:
            assert max(e for e, _, _ in calls) == one.exit_index  # zero work beyond the exit
            for e, start, count in calls:
                fresh = {(e, slot) for slot in range(start, start + count)}
                assert not fresh & slots_run, "a deferred token went through a segment twice"
                slots_run |= fresh
    if mode == "autoregressive":
        assert slots_run == {(e, slot) for e in range(3) for slot in range(len(PROMPT) + 23)}


def test_heads_are_read_only_where_a_token_may_leave() -> None:
    runner = TinyTransformer()
    run(runner, mode="certified", exit_rule=ExitRule(thresholds=(None, 1.0)), max_tokens=3)
    assert {e for e, _ in runner.head_calls} == {1, 2}
    runner.head_calls.clear()
    run(runner, mode="lossless", draft_exit=0, draft_length=2, max_tokens=3)
    assert runner.head_calls == [(0, 1), (0, 1), (2, 3)]  # the prompt's rows have no logits


def test_speculation_verifies_all_drafts_in_one_deep_call() -> None:
    runner = TinyTransformer(deep_scale=0.0)
    run(runner, mode="lossless", draft_exit=0, draft_length=3, max_tokens=8)
    second = runner.segment_calls[len(runner.segment_calls) // 2 :]
    start = len(PROMPT) + 3
    drafting = [(0, start + i, 1) for i in range(4)]
    assert second == [*drafting, (1, start, 4), (2, start, 4)]


@pytest.mark.parametrize("mode", ["autoregressive", "certified", "lossless"])
def test_the_context_is_a_limit_and_drafts_shrink_towards_it(mode: str) -> None:
    runner = TinyTransformer(context=10, deep_scale=0.0)
    tokens, rounds = run(runner, mode=mode, exit_rule=never(runner), max_tokens=100, draft_length=4)
    assert len(tokens) == 10 - len(PROMPT)
    assert rounds[-1].finish_reason == "length"
    if mode == "lossless":
        assert [len(one.drafted) for one in rounds] == [4, 0]


def test_closing_the_iterator_ends_the_work() -> None:
    runner = TinyTransformer()
    rounds = generate(runner, GenerateRequest(prompt_tokens=PROMPT))
    next(rounds)
    calls = len(runner.segment_calls)
    rounds.close()  # type: ignore[attr-defined]
    assert len(runner.segment_calls) == calls == 3


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt_tokens": ()}, "prompt is empty"),
        ({"prompt_tokens": (7,)}, "token 7"),
        ({"prompt_tokens": (1,) * 24}, "at most 23"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"sampling": SamplingParams(logit_bias={7: 1.0})}, "logit_bias names token 7"),
        ({"mode": "losless"}, "did you mean 'lossless'"),
        ({"mode": "lossless", "draft_exit": 2}, "expected 0 to 1"),
        ({"mode": "lossless", "draft_length": -1}, "draft_length is -1"),
        ({"mode": "certified"}, "needs an exit rule"),
        ({"mode": "certified", "exit_rule": ExitRule(thresholds=(0.5,))}, "1 thresholds"),
    ],
)
def test_bad_requests_are_refused_before_any_work(fields: dict, named: str) -> None:
    runner = TinyTransformer()
    with pytest.raises(UserError, match=named):
        generate(runner, GenerateRequest(**{"prompt_tokens": PROMPT, **fields}))
    assert not runner.segment_calls


def test_a_model_without_exits_cannot_speculate() -> None:
    runner = TinyTransformer(exit_layers=(3,))
    with pytest.raises(UserError, match="has none"):
        generate(runner, GenerateRequest(prompt_tokens=PROMPT, mode="lossless"))
    tokens, _ = run(runner, mode="certified", exit_rule=ExitRule(thresholds=()))
    assert tokens == run(runner)[0]
    assert np.all(np.array(tokens) < 7)
