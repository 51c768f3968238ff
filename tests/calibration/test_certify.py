"""Layers launched and computed, by each KV policy, against what decoding itself counts."""

from __future__ import annotations

import numpy as np
import pytest

from lit_eff.calibration.certify import Outcome
from lit_eff.runtime.decode import GenerateRequest, generate
from lit_eff.runtime.exit_rule import KV_POLICIES, ExitRule, KVPolicy
from tests.runtime.fakes import TinyTransformer

PROMPT, STEPS = (1, 4, 2, 6), 12


@pytest.mark.parametrize("policy", KV_POLICIES)
def test_work_is_what_decoding_does(policy: KVPolicy) -> None:
    exits_BN, launched, computed = [], 0, 0
    for seed in range(6):
        runner = TinyTransformer(seed=seed)
        rule = ExitRule("max_probability", (0.55, 0.45), kv_policy=policy)
        request = GenerateRequest(PROMPT, max_tokens=STEPS, mode="certified", exit_rule=rule)
        rounds = list(generate(runner, request))
        exits_BN.append([one.exit_index for one in rounds])
        launched += sum(one.layer_launches for one in rounds)
        # Prompts are left out of the figure: of their tokens all layers run, each once.
        work = sum(one.layer_tokens for one in rounds)
        prompt = runner.exit_layers[-1] * (len(PROMPT) - 1)
        if policy == "deferred":  # the prompt's wait for the first token that goes as deep
            deepest = max(runner.exit_layers[e] for e in exits_BN[-1])
            prompt = deepest * (len(PROMPT) - 1)
        computed += work - prompt
        if policy in ("recompute", "propagate"):
            launched -= runner.exit_layers[-1]
    exits_KBN = np.asarray([exits_BN])
    outcome = Outcome.of_exits(np.zeros((1, 6, 1)), exits_KBN, (1, 2, 4), policy)
    assert outcome.launched_BK.mean() * 6 * STEPS == pytest.approx(launched)
    assert outcome.computed_BK.mean() * 6 * STEPS == pytest.approx(computed)
    assert len(np.unique(exits_KBN)) == 3
