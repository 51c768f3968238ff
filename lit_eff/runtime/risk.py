"""The loss that a certificate is about: what early exits write against what the full model writes.

One definition, for the calibrate job (which runs whole batches with torch), for a server that runs a share of
its requests in full as well, and for ``lit-eff verify``.

Shapes: B sequences, K exit rules, N continuation tokens.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_eff.errors import UserError
from lit_eff.runtime.decode import GenerateRequest, Mode, Round, generate
from lit_eff.runtime.exit_rule import ExitRule
from lit_eff.runtime.segments import SegmentRunner

BOTH: tuple[Mode, ...] = ("autoregressive", "certified")


def token_disagreement(tokens_KBN: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of tokens that differ from those of rule 0, the full model: float64 ``(B, K)``, in [0, 1].

    The loss of textual consistency (Schuster et al. 2022, section 4).
    """
    return np.asarray((tokens_KBN != tokens_KBN[0]).mean(axis=2).T)


@dataclass(frozen=True)
class Comparison:
    """One prompt, continued both ways.

    Attributes:
        loss: of the sequence, in [0, 1].
        exits: the exit index each token of the early-exit continuation came from.
    """

    loss: float
    exits: tuple[int, ...]


def compare(
    runner: SegmentRunner, prompt_tokens: Sequence[int], rule: ExitRule, steps: int
) -> Generator[Round, None, Comparison]:
    """Continue a prompt by exactly ``steps`` greedy tokens, in full and under the rule, and compare.

    Yields after every round, so that other work may go between; nothing is computed meanwhile. Both run free,
    without stop tokens, as in calibration: the loss depends on the prompt alone, not on where some answer to
    it happened to end.

    Raises:
        UserError: for a prompt that is empty, or leaves no room in the context for the continuation.
    """
    prompt = tuple(prompt_tokens)
    if len(prompt) + steps > runner.context:
        raise UserError(
            f"the prompt has {len(prompt)} tokens, which leaves no room for {steps} more in the context of "
            f"{runner.context}"
        )
    tokens_KBN = np.empty((2, 1, steps), np.int64)
    exits: list[int] = []
    for k, mode in enumerate(BOTH):
        request = GenerateRequest(prompt, max_tokens=steps, mode=mode, exit_rule=rule)
        for n, one in enumerate(generate(runner, request)):
            tokens_KBN[k, 0, n] = one.tokens[0]
            if mode == "certified":
                assert one.exit_index is not None
                exits.append(one.exit_index)
            yield one
    return Comparison(float(token_disagreement(tokens_KBN)[0, 1]), tuple(exits))
