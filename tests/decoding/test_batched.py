"""Batched early-exit generation against the definition, ``runtime.decode``, token for token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_eff.decoding.batched import Continuations, generate_with_exits
from lit_eff.decoding.confidence import hidden_saturation, of_logits
from lit_eff.decoding.torch_runner import TorchRunner
from lit_eff.errors import UserError
from lit_eff.models.config import ExitConfig, ModelConfig
from lit_eff.models.transformer import Transformer
from lit_eff.runtime import confidence
from lit_eff.runtime.confidence import LOGIT_MEASURES
from lit_eff.runtime.decode import GenerateRequest, generate
from lit_eff.runtime.exit_rule import ExitRule, KVPolicy

STEPS = 10
NEVER = ExitRule()


def make_model(**changes) -> Transformer:
    torch.manual_seed(3)
    values = {
        "vocab_size": 97,
        "layers": 6,
        "model_dim": 64,
        "heads": 4,
        "kv_heads": 2,
        "context": 64,
        "init_std": 0.2,
        "exits": ExitConfig(layers=(1, 2, 4), head="norm"),
    }
    return Transformer(ModelConfig(**{**values, **changes}))


def make_prompts(count: int, longest: int = 12, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 97, rng.integers(1, longest + 1)).tolist() for _ in range(count)]


def grid(
    measure: str = "softmax_response", decay: float | None = None, policy: KVPolicy = "deferred"
) -> list[ExitRule]:
    """From never to always, and two with a threshold of their own at each exit."""
    limits = [(limit,) * 3 for limit in (0.95, 0.8, 0.6, 0.4, 0.2, 0.0)]
    rules = [
        ExitRule(measure, limit, decay, STEPS, policy)
        for limit in [*limits, (None, 0.9, 0.3), (0.9, 0.9, 0.4)]
    ]
    return [ExitRule(measure, kv_policy=policy), *rules]


def one_by_one(model: Transformer, prompts: list[list[int]], rules: list[ExitRule]) -> Continuations:
    runner = TorchRunner(model)
    tokens, exits = np.empty((2, len(rules), len(prompts), STEPS), np.int64)
    for k, rule in enumerate(rules):
        for b, prompt in enumerate(prompts):
            request = GenerateRequest(
                tuple(prompt),
                max_tokens=STEPS,
                mode="certified" if rule.thresholds else "autoregressive",
                exit_rule=rule,
            )
            rounds = list(generate(runner, request))
            tokens[k, b] = [r.tokens[0] for r in rounds]
            exits[k, b] = [r.exit_index for r in rounds]
    return Continuations(tokens, exits, 0)


def assert_same(ours: Continuations, theirs: Continuations) -> None:
    np.testing.assert_array_equal(ours.tokens_KBN, theirs.tokens_KBN)
    np.testing.assert_array_equal(ours.exits_KBN, theirs.exits_KBN)


@pytest.mark.parametrize(
    ("changes", "measure", "decay"),
    [
        ({}, "softmax_response", None),
        ({}, "softmax_response", 4.0),
        ({}, "max_probability", None),
        ({}, "entropy", 2.0),
        ({"exits": ExitConfig(layers=(1, 2, 4), head="shared"), "window": 5}, "softmax_response", None),
        ({"norm": "layer", "positions": "learned", "mlp": "gelu", "kv_heads": 4}, "softmax_response", None),
        ({"exits": ExitConfig(layers=(1, 2, 4), head="mlp"), "tied": False}, "softmax_response", None),
        ({"attention_softcap": 5.0, "logit_softcap": 20.0}, "softmax_response", None),
    ],
)
def test_batched_is_decode_token_for_token(changes: dict, measure: str, decay: float | None) -> None:
    model, prompts, rules = make_model(**changes), make_prompts(5), grid(measure, decay)
    ours = generate_with_exits(model, prompts, STEPS, rules, batch_size=3)
    assert_same(ours, one_by_one(model, prompts, rules))
    # The case is not an empty one: rules part ways, and every exit is taken.
    assert len({tokens_BN.tobytes() for tokens_BN in ours.tokens_KBN}) >= 3
    assert set(np.unique(ours.exits_KBN)) == {0, 1, 2, 3}


CLASSIFIED = ExitConfig(layers=(1, 2, 4), head="norm", classifier=True)


@pytest.mark.parametrize(
    ("measure", "policy", "changes"),
    [
        ("hidden_saturation", "deferred", {}),
        ("classifier", "deferred", {"exits": CLASSIFIED}),
        ("patience", "deferred", {}),
        ("softmax_response", "recompute", {}),
        ("softmax_response", "exact", {}),
        ("softmax_response", "propagate", {}),
        ("hidden_saturation", "propagate", {"qk_norm": True}),
        ("classifier", "propagate", {"exits": CLASSIFIED, "qkv_bias": True}),
        (
            "patience",
            "propagate",
            {"norm": "layer", "positions": "learned", "norm_position": "post", "mlp": "gelu"},
        ),
    ],
)
def test_measures_and_policies_are_decodes(measure: str, policy: KVPolicy, changes: dict) -> None:
    model, prompts, rules = make_model(**changes), make_prompts(5), grid(measure, policy=policy)
    if model.exit_classifier is not None:  # scores spread over the grid
        torch.nn.init.normal_(model.exit_classifier.weight, std=0.3)
    ours = generate_with_exits(model, prompts, STEPS, rules, batch_size=3)
    assert_same(ours, one_by_one(model, prompts, rules))
    assert len(np.unique(ours.exits_KBN)) >= 3
    deferred = generate_with_exits(model, prompts, STEPS, grid(measure))
    differs = (ours.tokens_KBN != deferred.tokens_KBN).any()
    assert differs == (policy == "propagate")


def test_neighbours_padding_and_batch_size_change_nothing() -> None:
    model, prompts, rules = make_model(), make_prompts(9), grid()
    together = generate_with_exits(model, prompts, STEPS, rules)
    order = np.random.default_rng(1).permutation(9)
    shuffled = generate_with_exits(model, [prompts[i] for i in order], STEPS, rules, batch_size=4)
    np.testing.assert_array_equal(shuffled.tokens_KBN, together.tokens_KBN[:, order])
    np.testing.assert_array_equal(shuffled.exits_KBN, together.exits_KBN[:, order])
    alone = generate_with_exits(model, prompts[4:5], STEPS, rules)
    np.testing.assert_array_equal(alone.tokens_KBN, together.tokens_KBN[:, 4:5])


def test_each_distinct_prefix_is_run_once() -> None:
    prompts = make_prompts(6)
    ours = generate_with_exits(make_model(), prompts, STEPS, [*grid(), *grid()])
    prefixes = {
        (b, t, ours.tokens_KBN[k, b, :t].tobytes())
        for k in range(len(ours.tokens_KBN))
        for b in range(len(prompts))
        for t in range(1, STEPS)
    }
    assert ours.rows_run == len(prefixes)


def test_heads_are_read_only_where_a_rule_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    read: list[int] = []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden, e: read.append(e) or logits(hidden, e))
    generate_with_exits(model, make_prompts(3), STEPS, [NEVER])
    assert set(read) == {3}
    read.clear()
    generate_with_exits(model, make_prompts(3), STEPS, [ExitRule(thresholds=(None, 0.0, 0.0))])
    assert set(read) == {1}


def test_a_model_without_early_exits() -> None:
    model = make_model(exits=ExitConfig())
    ours = generate_with_exits(model, make_prompts(3), STEPS, [NEVER])
    assert_same(ours, one_by_one(model, make_prompts(3), [NEVER]))


def test_progress_counts_prompts() -> None:
    seen: list[tuple[int, int]] = []
    generate_with_exits(
        make_model(), make_prompts(5), 2, [NEVER], batch_size=2, progress=lambda *counts: seen.append(counts)
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(
    ("prompts", "rules", "message"),
    [
        ([], [NEVER], "empty prompt"),
        ([[1], []], [NEVER], "empty prompt"),
        ([[1] * 60], [NEVER], "do not fit the context of 64"),
        ([[1]], [NEVER, ExitRule("entropy")], "one confidence measure"),
        ([[1]], [NEVER, ExitRule(kv_policy="propagate")], "one KV policy"),
        ([[1]], [ExitRule("classifier", (0.5,) * 3)], "no exit classifier"),
        ([[1]], [ExitRule(thresholds=(0.5,))], "1 thresholds for 3 early exits"),
    ],
)
def test_bad_input_is_refused(prompts: list[list[int]], rules: list[ExitRule], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate_with_exits(make_model(), prompts, STEPS, rules)


def test_a_broken_model_is_refused() -> None:
    model = make_model()
    with torch.no_grad():
        model.head.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="not finite at exit 3"):
        generate_with_exits(model, [[1, 2]], STEPS, [NEVER])


@pytest.mark.parametrize("measure", LOGIT_MEASURES)
@pytest.mark.parametrize("vocabulary", [1, 2, 50])
def test_torch_confidence_is_numpys(measure: str, vocabulary: int) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, vocabulary)).astype(np.float32) * rng.uniform(0, 60, (40, 1)).astype(
        np.float32
    )
    logits[0] = 0.0  # all equal
    expected = LOGIT_MEASURES[measure](logits)
    ours = of_logits(torch.from_numpy(logits.copy()), measure)
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours, expected, atol=3e-7)


def test_torch_saturation_is_numpys() -> None:
    here, before = np.random.default_rng(0).normal(size=(2, 40, 64)).astype(np.float32)
    before[:3], here[3] = here[:3] * [[2], [-1], [0]], 0.0
    ours = hidden_saturation(torch.from_numpy(here), torch.from_numpy(before))
    np.testing.assert_allclose(ours, confidence.hidden_saturation(here, before), atol=3e-7)
