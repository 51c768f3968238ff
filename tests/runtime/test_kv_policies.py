"""What each KV policy leaves in the cache and what it costs, against the definition, on a runner that catches
every read of a slot that was not written."""

from __future__ import annotations

import numpy as np
import pytest

from lit_eff.runtime.confidence import LOGIT_MEASURES
from lit_eff.runtime.decode import GenerateRequest, Round, generate
from lit_eff.runtime.exit_rule import KV_POLICIES, ExitRule, KVPolicy
from tests.runtime.fakes import TinyTransformer

PROMPT = (1, 4, 2, 6)
STEPS = 16
THRESHOLDS = (0.55, 0.45)


def run(
    policy: KVPolicy,
    seed: int,
    thresholds: tuple[float | None, ...] = THRESHOLDS,
    prompt: tuple[int, ...] = PROMPT,
) -> tuple[TinyTransformer, list[Round]]:
    runner = TinyTransformer(seed=seed)
    rule = ExitRule("max_probability", thresholds, kv_policy=policy)
    request = GenerateRequest(prompt, max_tokens=STEPS, mode="certified", exit_rule=rule)
    return runner, list(generate(runner, request))


def text(rounds: list[Round]) -> list[tuple[int, int | None]]:
    return [(one.tokens[0], one.exit_index) for one in rounds]


@pytest.mark.parametrize("policy", ["recompute", "exact"])
@pytest.mark.parametrize("seed", range(4))
def test_exact_policies_write_the_deferred_text(policy: KVPolicy, seed: int) -> None:
    rounds = run(policy, seed)[1]
    assert text(rounds) == text(run("deferred", seed)[1])
    assert len({one.exit_index for one in rounds}) >= 2


def propagated(runner: TinyTransformer, rule: ExitRule) -> list[tuple[int, int | None]]:
    """By the definition: layer by layer with a cache of its own, written in here."""
    state, last = runner.new_state(), len(runner.exit_layers) - 1
    hidden_TC = runner.embed(np.asarray(PROMPT[:-1], np.int64), 0)
    for e in range(last + 1):
        hidden_TC = runner.run_segment(state, e, hidden_TC, 0)
    token, chosen = PROMPT[-1], []
    for t in range(STEPS):
        slot = len(PROMPT) - 1 + t
        hidden_1C = runner.embed(np.asarray([token], np.int64), slot)
        for e in range(last + 1):
            hidden_1C = runner.run_segment(state, e, hidden_1C, slot)
            logits_V = runner.head(e, hidden_1C)[0]
            if e < last and rule.should_exit(e, LOGIT_MEASURES[rule.measure](logits_V), t):
                break
        for layer in range(runner.exit_layers[e], runner.exit_layers[-1]):
            normed_C = hidden_1C[0] / np.sqrt(np.mean(hidden_1C[0] ** 2) + 1e-6)
            for kind in (1, 2):
                state[layer, kind - 1, slot] = normed_C @ runner.attention_L4CC[layer, kind]
        token = int(logits_V.argmax())
        chosen.append((token, e))
    return chosen


@pytest.mark.parametrize("seed", range(4))
def test_propagation_is_the_definition(seed: int) -> None:
    rule = ExitRule("max_probability", THRESHOLDS, kv_policy="propagate")
    assert text(run("propagate", seed)[1]) == propagated(TinyTransformer(seed=seed), rule)


def test_propagation_writes_another_text() -> None:
    assert any(text(run("propagate", seed)[1]) != text(run("deferred", seed)[1]) for seed in range(4))


@pytest.mark.parametrize("policy", KV_POLICIES)
def test_a_prompt_of_one_token(policy: KVPolicy) -> None:
    rounds = run(policy, 0, prompt=(3,))[1]
    assert len(rounds) == STEPS
    if policy != "propagate":
        assert text(rounds) == text(run("deferred", 0, prompt=(3,))[1])


@pytest.mark.parametrize("policy", KV_POLICIES)
def test_never_exiting_is_the_full_model(policy: KVPolicy) -> None:
    runner, rounds = run(policy, 1, (None, None))
    full = generate(runner, GenerateRequest(PROMPT, max_tokens=STEPS))
    assert text(rounds) == text(list(full))


@pytest.mark.parametrize("seed", range(3))
def test_work_of_each_policy(seed: int) -> None:
    """Layers launched and computed a round, from the exits alone."""
    layers = TinyTransformer().exit_layers
    for policy in KV_POLICIES:
        runner, rounds = run(policy, seed)
        left = [layers[one.exit_index] for one in rounds if one.exit_index is not None]
        prompt = len(PROMPT) - 1
        waiting = 0  # tokens since the last full pass
        for number, (one, depth) in enumerate(zip(rounds, left, strict=True)):
            first = number == 0 and policy in ("recompute", "propagate")
            launched, computed = one.layer_launches, one.layer_tokens
            if first:  # the prompt's own pass
                launched, computed = launched - layers[-1], computed - layers[-1] * prompt
            if policy == "exact":
                assert launched == layers[-1]
                assert computed == layers[-1] * (1 + (prompt if number == 0 else 0))
            elif policy == "propagate":
                assert (launched, computed) == (depth, depth)
            elif policy == "recompute":
                assert (launched, computed) == (depth, depth * (waiting + 1))
                waiting = 0 if depth == layers[-1] else waiting + 1
            else:
                assert launched == depth
        if policy == "propagate":
            skipped = sum(sum(border > depth for border in layers) for depth in left)
            assert len(runner.propagate_calls) == skipped
            assert all(count == 1 for _, _, count in runner.propagate_calls)
        else:
            assert not runner.propagate_calls
