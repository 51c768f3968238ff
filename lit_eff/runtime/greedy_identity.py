"""Is self-speculation what it promises to be, greedily: autoregressive output, token for token?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Literal

from lit_eff.runtime.decode import GenerateRequest, Round, generate
from lit_eff.runtime.prompts import Prompt
from lit_eff.runtime.segments import SegmentRunner

DRAFT_LENGTHS = (1, 4, 7)
TOKENS = 32  # continued a run, where the context has room


@dataclass(frozen=True)
class Mismatch:
    """The first token of a run that differs.

    Attributes:
        prompt: its index among the prompts.
        draft_layers, draft_length: of the run.
        position: of the token in the output.
    """

    prompt: int
    draft_layers: int
    draft_length: int
    position: int


@dataclass(frozen=True)
class GreedyIdentity:
    """What :func:`greedy_identity` found.

    Attributes:
        prompts: continued, each once in full and once for every draft exit and draft length.
        runs: speculative continuations compared.
        tokens: compared in all of them.
        acceptance: share of drafts that were kept; where none is, little of the machinery was at work.
        mismatches: of each run that differs.
    """

    prompts: int
    runs: int
    tokens: int
    acceptance: float
    mismatches: tuple[Mismatch, ...]

    @property
    def verdict(self) -> Literal["identical", "refuted"]:
        return "refuted" if self.mismatches else "identical"


def greedy_identity(
    runner: SegmentRunner, prompts: Iterable[Prompt], *, draft_lengths: tuple[int, ...] = DRAFT_LENGTHS
) -> GreedyIdentity:
    """Compare greedy ``lossless`` with ``autoregressive`` output: every draft exit, every draft length.

    Args:
        runner: with an early exit at least.
        prompts: each leaves room in the context for a token at least.

    Raises:
        UserError: as :func:`lit_eff.runtime.decode.generate`.
    """
    count, runs, tokens, kept, drafted = 0, 0, 0, 0, 0
    mismatches: list[Mismatch] = []
    for prompt in prompts:
        plain = _tokens(list(generate(runner, GenerateRequest(prompt, TOKENS))))
        for e, length in product(range(len(runner.exit_layers) - 1), draft_lengths):
            request = GenerateRequest(prompt, TOKENS, "lossless", draft_exit=e, draft_length=length)
            rounds = list(generate(runner, request))
            found = _tokens(rounds)
            runs, tokens = runs + 1, tokens + len(found)
            kept += sum(one.accepted for one in rounds)
            drafted += sum(len(one.drafted) for one in rounds)
            if found != plain:
                position = next(
                    i for i, pair in enumerate(zip(found, plain, strict=True)) if len(set(pair)) > 1
                )
                mismatches.append(Mismatch(count, runner.exit_layers[e], length, position))
        count += 1
    return GreedyIdentity(count, runs, tokens, kept / max(1, drafted), tuple(mismatches))


def _tokens(rounds: list[Round]) -> list[int]:
    return [token for one in rounds for token in one.tokens]
