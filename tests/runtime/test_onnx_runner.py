"""The ONNX engine's promise, bitwise: what a row yields depends on no neighbour, call, thread or rollback."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lit_eff.errors import UserError
from lit_eff.models.config import ExitConfig
from lit_eff.runtime.decode import GenerateRequest, generate
from lit_eff.runtime.onnx_runner import OnnxRunner
from lit_eff.runtime.sampling import SamplingParams
from tests.export.models import onnx_runner, tiny_model

CONTEXT = 600
# Widths off the vector sizes, and beyond the block sizes of MLAS (128, 256), make a reduction order show.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "small": ("llama", {"mlp_dim": 86}),
    "normed_heads": ("qwen3", {"head_dim": 40}),
    "wide": ("llama", {"model_dim": 320, "heads": 5, "kv_heads": 1, "mlp_dim": 700, "vocab_size": 1111}),
    "wide_heads": ("gpt2", {"model_dim": 256, "heads": 2, "mlp_dim": 600}),
    "window": ("window", {"window": 37, "head_dim": 48}),
}
TOKENS = np.random.default_rng(0).integers(0, 97, CONTEXT)


@pytest.fixture(scope="module")
def runner_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(shape: str, threads: int) -> OnnxRunner:
        family, changes = SHAPES[shape]
        exits = ExitConfig((1,), classifier=True)
        model = tiny_model(family, layers=3, exits=exits, context=CONTEXT, **changes)
        return onnx_runner(model, tmp_path_factory.mktemp("graphs"), threads)

    return make


def logits(runner: OnnxRunner, splits: Iterable[int], *, state: Any = None) -> NDArray[np.float32]:
    """Logits ``(E, T, V)`` of ``TOKENS``, run in calls of the given row counts."""
    state = state or runner.new_state()
    rows: list[list[NDArray[np.float32]]] = [[] for _ in runner.exit_layers]
    start = 0
    for count in splits:
        hidden_TC = runner.embed(TOKENS[start : start + count], start)
        for e in range(len(runner.exit_layers)):
            hidden_TC = runner.run_segment(state, e, hidden_TC, start)
            rows[e].append(runner.head(e, hidden_TC))
        start += count
    return np.stack([np.concatenate(per_exit) for per_exit in rows])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_do_not_depend_on_the_split_into_calls(shape: str, threads: int, runner_of: Any) -> None:
    one_by_one = logits(runner_of(shape, 1), [1] * CONTEXT)
    runner = runner_of(shape, threads)

    @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.integers(1, 64), min_size=8, max_size=40))
    def check(counts: list[int]) -> None:
        ends = np.minimum(np.cumsum(counts), CONTEXT)
        splits = [int(count) for count in np.diff(ends, prepend=0) if count]
        np.testing.assert_array_equal(logits(runner, splits), one_by_one[:, : sum(splits)])

    check()
    np.testing.assert_array_equal(logits(runner, [CONTEXT]), one_by_one)


def test_cache_capacity_changes_no_bit(runner_of: Any) -> None:
    runner = runner_of("small", 1)
    roomy = runner.new_state()
    for e in range(len(runner.exit_layers)):  # every chunk is there from the start
        runner.run_segment(roomy, e, runner.embed(TOKENS[-1:], CONTEXT - 1), CONTEXT - 1)
    splits = [3, 60, 1, 100]
    np.testing.assert_array_equal(logits(runner, splits, state=roomy), logits(runner, splits))


def test_rolled_back_slots_leave_no_trace(runner_of: Any) -> None:
    """Lower start, other tokens on top: as if the first ones had never been run."""
    runner = runner_of("window", 1)
    state = runner.new_state()
    logits(runner, [20, 30], state=state)
    draft_TC = runner.embed(TOKENS[100:109], 41)
    for e in range(len(runner.exit_layers)):
        draft_TC = runner.run_segment(state, e, draft_TC, 41)
    start, again = 41, []
    for count in (1, 5, 3):
        hidden_TC = runner.embed(TOKENS[start : start + count], start)
        for e in range(len(runner.exit_layers)):
            hidden_TC = runner.run_segment(state, e, hidden_TC, start)
        again.append(runner.head(1, hidden_TC))
        start += count
    np.testing.assert_array_equal(np.concatenate(again), logits(runner, [50])[1, 41:50])


def test_slots_after_the_call_are_never_read(runner_of: Any) -> None:
    """Whatever bits stand there, NaN included; nor do a call's padding rows keep those of an earlier one."""
    runner = runner_of("small", 1)
    state = runner.new_state()
    poison_TC = np.full((10, 64), np.nan, np.float32)
    for e in range(len(runner.exit_layers)):
        for start in (10, 20, 30):
            runner.run_segment(state, e, poison_TC, start)
    np.testing.assert_array_equal(logits(runner, [9, 1, 1, 20], state=state), logits(runner, [31]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_overflows_spoils_no_earlier_row(bad: float, runner_of: Any) -> None:
    runner = runner_of("small", 1)
    hidden_TC = runner.embed(TOKENS[:8], 0)
    expected_TC = runner.run_segment(runner.new_state(), 0, hidden_TC, 0)
    hidden_TC[5, 3] = bad
    spoilt_TC = runner.run_segment(runner.new_state(), 0, hidden_TC, 0)
    np.testing.assert_array_equal(spoilt_TC[:5], expected_TC[:5])
    assert not np.isfinite(spoilt_TC[5:]).any()


def test_states_are_independent_and_returned_arrays_are_not_reused(runner_of: Any) -> None:
    runner = runner_of("small", 1)
    one, two = runner.new_state(), runner.new_state()
    hidden_TC = runner.embed(TOKENS[:4], 0)
    first = runner.run_segment(one, 0, hidden_TC, 0)
    kept = first.copy()
    runner.run_segment(two, 0, runner.embed(TOKENS[50:54], 0), 0)
    runner.run_segment(one, 0, runner.embed(TOKENS[60:64], 4), 4)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(runner.run_segment(one, 0, hidden_TC[3:], 3), kept[3:])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_do_not_depend_on_the_split_into_calls(shape: str, threads: int, runner_of: Any) -> None:
    runner = runner_of(shape, threads)
    hidden_TC = runner.run_segment(runner.new_state(), 0, runner.embed(TOKENS, 0), 0)
    one_by_one_T = np.concatenate([runner_of(shape, 1).exit_score(row_1C) for row_1C in hidden_TC[:, None]])
    assert one_by_one_T.dtype == np.float32
    assert len(set(one_by_one_T.tolist())) > 90  # of 97 tokens and their prefixes

    @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.integers(1, 64), min_size=8, max_size=40))
    def check(counts: list[int]) -> None:
        parts = np.split(hidden_TC, np.minimum(np.cumsum(counts), CONTEXT))
        scores_T = np.concatenate([runner.exit_score(part) for part in parts if len(part)])
        np.testing.assert_array_equal(scores_T, one_by_one_T)

    check()
    hidden_TC[5, 3] = np.inf  # spoils no neighbour
    spoilt_T = runner.exit_score(hidden_TC)
    assert not np.isfinite(spoilt_T[5])
    np.testing.assert_array_equal(np.delete(spoilt_T, 5), np.delete(one_by_one_T, 5))


@pytest.mark.parametrize("draft_length", [1, 4, 7])
def test_greedy_speculation_is_autoregression_bit_for_bit(draft_length: int, runner_of: Any) -> None:
    runner = runner_of("wide", 2)

    def output(mode: Any) -> tuple[list[int], int]:
        greedy = SamplingParams(temperature=0.0)
        prompt = tuple(int(token) for token in TOKENS[:70])
        request = GenerateRequest(prompt, 60, mode, greedy, draft_exit=0, draft_length=draft_length)
        rounds = list(generate(runner, request))
        return [token for one in rounds for token in one.tokens], len(rounds)

    expected, _ = output("autoregressive")
    assert output("lossless")[0] == expected
    assert len(set(expected)) > 5, "a constant output would prove nothing"


def test_the_context_ends(runner_of: Any) -> None:
    runner = runner_of("small", 1)
    state = runner.new_state()
    hidden_TC = runner.embed(TOKENS[:2], CONTEXT - 2)
    assert runner.run_segment(state, 0, hidden_TC, CONTEXT - 2).shape == (2, 64)
    with pytest.raises(UserError, match="the context ends at 600"):
        runner.run_segment(state, 0, hidden_TC, CONTEXT - 1)
    with pytest.raises(UserError, match="the context ends at 600"):
        runner.embed(TOKENS[:2], CONTEXT - 1)


def test_threads_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="threads is 0"):
        onnx_runner(tiny_model(), tmp_path, threads=0)
