"""The torch runner: row invariance to the bit, and the decoding modes over it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from lit_eff.decoding.torch_runner import TorchRunner
from lit_eff.errors import UserError
from lit_eff.models.config import ExitConfig, ModelConfig
from lit_eff.models.transformer import Transformer
from lit_eff.runtime.decode import GenerateRequest, generate
from lit_eff.runtime.exit_rule import ExitRule

LLAMA = ModelConfig(
    vocab_size=211,
    layers=6,
    model_dim=96,
    heads=4,
    kv_heads=2,
    context=80,
    init_std=0.15,
    exits=ExitConfig(layers=(1, 2, 4), head="norm"),
)
GPT2 = ModelConfig(
    vocab_size=101,
    layers=3,
    model_dim=60,  # not a multiple of the vector width
    heads=3,
    context=50,
    norm="layer",
    positions="learned",
    mlp="gelu_tanh",
    qkv_bias=True,
    attention_bias=True,
    mlp_bias=True,
    window=9,
    init_std=0.15,
    exits=ExitConfig(layers=(1,)),
)
CONFIGS = pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])


def make_runner(config: ModelConfig, seed: int = 0) -> TorchRunner:
    torch.manual_seed(seed)
    return TorchRunner(Transformer(config))


def prompt_of(runner: TorchRunner, length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, runner.vocab_size, length).tolist())


def run_all(runner: TorchRunner, tokens: np.ndarray, pieces: list[int]) -> list[np.ndarray]:
    """Hidden states at each exit and the last head's logits, running ``tokens`` in calls of these sizes."""
    state, start = runner.new_state(), 0
    outputs = []
    for size in pieces:
        hidden = runner.embed(tokens[start : start + size], start)
        row = []
        for e in range(len(runner.exit_layers)):
            hidden = runner.run_segment(state, e, hidden, start)
            row.append(hidden)
        outputs.append([*row, runner.head(len(row) - 1, hidden)])
        start += size
    return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]


@CONFIGS
def test_hidden_states_and_logits_are_the_models(config: ModelConfig) -> None:
    runner = make_runner(config)
    tokens = np.array(prompt_of(runner, 37))
    with torch.no_grad():
        states = runner.model(torch.from_numpy(tokens)[None])
        logits = runner.model.logits(states[-1], len(states) - 1)[0]
    *hidden, head = run_all(runner, tokens, [37])
    for ours, theirs in zip(hidden, states, strict=True):
        np.testing.assert_allclose(ours, theirs[0], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(head, logits, atol=1e-4, rtol=1e-4)


@CONFIGS
@pytest.mark.parametrize("pieces", [[1] * 37, [16, 16, 5], [5, 1, 17, 3, 11], [36, 1]])
def test_bits_do_not_depend_on_how_many_rows_share_a_call(config: ModelConfig, pieces: list[int]) -> None:
    runner = make_runner(config)
    tokens = np.array(prompt_of(runner, 37))
    for ours, theirs in zip(run_all(runner, tokens, pieces), run_all(runner, tokens, [37]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@CONFIGS
@pytest.mark.parametrize("pieces", [[1] * 37, [16, 16, 5], [5, 1, 17, 3, 11]])
def test_scores_are_the_models_and_do_not_depend_on_the_call(config: ModelConfig, pieces: list[int]) -> None:
    exits = dataclasses.replace(config.exits, classifier=True)
    runner = make_runner(dataclasses.replace(config, exits=exits))
    hidden_TC = run_all(runner, np.array(prompt_of(runner, 37)), [37])[0]
    with torch.no_grad():
        expected_T = runner.model.exit_score(torch.from_numpy(hidden_TC))
    score_T = runner.exit_score(hidden_TC)
    assert (score_T.shape, score_T.dtype) == ((37,), np.float32)
    np.testing.assert_allclose(score_T, expected_T, atol=1e-5)
    parts = np.split(hidden_TC, np.cumsum(pieces)[:-1])
    np.testing.assert_array_equal(np.concatenate([runner.exit_score(part) for part in parts]), score_T)


def test_a_model_without_an_exit_classifier_says_so() -> None:
    runner = make_runner(LLAMA)
    with pytest.raises(UserError, match="no exit classifier; train one with recipes/exit_classifier"):
        runner.exit_score(np.zeros((1, LLAMA.model_dim), np.float32))


@CONFIGS
def test_what_a_rollback_leaves_behind_changes_no_bit(config: ModelConfig) -> None:
    runner = make_runner(config)
    tokens = np.array(prompt_of(runner, 20))
    clean = run_all(runner, tokens, [20])[0]
    state = runner.new_state()
    runner.run_segment(state, 0, runner.embed(tokens, 0), 0)
    other = np.array(prompt_of(runner, 30, seed=9))
    runner.run_segment(state, 0, runner.embed(other, 8), 8)  # drafts, all rejected
    again = runner.run_segment(state, 0, runner.embed(tokens[8:], 8), 8)
    np.testing.assert_array_equal(again, clean[8:])


def tokens_of(runner: TorchRunner, **options) -> tuple[list[int], list]:
    rounds = list(generate(runner, GenerateRequest(**options)))
    return [token for r in rounds for token in r.tokens], rounds


@CONFIGS
@pytest.mark.parametrize("draft_length", [0, 1, 4, 7])
def test_greedy_speculation_is_greedy_autoregression(config: ModelConfig, draft_length: int) -> None:
    runner = make_runner(config)
    accepted = 0
    for seed in range(3):
        prompt = prompt_of(runner, 3 + 7 * seed, seed)
        expected, _ = tokens_of(runner, prompt_tokens=prompt, max_tokens=30)
        for draft_exit in range(len(runner.exit_layers) - 1):
            speculated, rounds = tokens_of(
                runner,
                prompt_tokens=prompt,
                max_tokens=30,
                mode="lossless",
                draft_exit=draft_exit,
                draft_length=draft_length,
            )
            assert speculated == expected
            accepted += sum(r.accepted for r in rounds)
    assert (accepted > 0) == (draft_length > 0)


@CONFIGS
def test_certified_without_thresholds_is_autoregression_and_fills_the_context(config: ModelConfig) -> None:
    runner = make_runner(config)
    prompt, never = prompt_of(runner, 5), (None,) * (len(runner.exit_layers) - 1)
    expected, _ = tokens_of(runner, prompt_tokens=prompt, max_tokens=1000)
    assert len(prompt) + len(expected) == config.context
    certified, _ = tokens_of(
        runner,
        prompt_tokens=prompt,
        max_tokens=1000,
        mode="certified",
        exit_rule=ExitRule(thresholds=never),
    )
    assert certified == expected


def test_an_encoder_is_refused() -> None:
    with pytest.raises(UserError, match="not a causal language model"):
        make_runner(ModelConfig(vocab_size=10, layers=1, model_dim=8, heads=1, causal=False))
