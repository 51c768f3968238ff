"""Is self-speculation what it promises to be, sampled: distributed as the full model?

A bet on the tokens that ``lossless`` mode writes. The full model's distribution p of each token, given those
before it, is computed by the model itself, and so is the distribution f that a mistake would leave. Wealth
that is multiplied by ``1/2 + f(x) / 2 p(x)`` at every token x is a martingale if tokens are drawn from p, so
it, or the mean of several, ever reaches 1/alpha with a probability of at most alpha (Ville's inequality);
that needs no approximation and no number of samples. If tokens are drawn from f it grows exponentially, and
how fast is known too: the power against each mistake is told.

Shapes: V vocabulary, T tokens of one output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lit_eff.runtime.decode import GenerateRequest, generate
from lit_eff.runtime.prompts import Prompt
from lit_eff.runtime.sampling import Distribution, SamplingParams, target_distribution
from lit_eff.runtime.segments import SegmentedSequence, SegmentRunner

ALPHA = 0.001
DRAFT_LENGTHS = (1, 3)
PLAIN = SamplingParams(temperature=1.0)
# What each bet is on, and how its mistake reads.
MISTAKES = {
    "kept": "drafts are kept whatever the target says",
    "redrawn": "a rejected draft is redrawn from the target, not from the residual",
    "unnormalised": "the residual is sampled as if it summed to 1: the last token takes what is missing",
    "own": "the target's own token comes from the draft's distribution",
    "sharper": "tokens come from p squared (half the temperature)",
    "flatter": "tokens come from the root of p (twice the temperature)",
}


@dataclass(frozen=True)
class SampledIdentity:
    """What :func:`sampled_identity` found.

    Attributes:
        sequences: written in ``lossless`` mode.
        tokens: of all of them.
        alpha: probability with which a right engine is refuted, at most.
        log_wealth: natural logarithm of the evidence; refuted once it reaches ``-log(alpha)``.
        log_wealths: of each bet; their mean wealth is the evidence.
        power: of each mistake of :data:`MISTAKES`, the probability with which so many tokens find it, as
            modelled from the distributions met (logarithms of wealth taken as normal). Low where the draft
            exit and the target hardly differ: the mistake then hardly matters.
    """

    sequences: int
    tokens: int
    alpha: float
    log_wealth: float
    log_wealths: dict[str, float]
    power: dict[str, float]

    @property
    def verdict(self) -> Literal["consistent", "refuted"]:
        return "refuted" if self.log_wealth >= -math.log(self.alpha) else "consistent"


def sampled_identity(
    runner: SegmentRunner, prompts: Sequence[Prompt], seeds: Iterable[int], *, alpha: float = ALPHA
) -> SampledIdentity:
    """Bet against ``lossless`` sampling at temperature 1, over all draft exits and ``DRAFT_LENGTHS``.

    Args:
        runner: with an early exit at least.
        prompts: taken in turns; each leaves room for ``max(DRAFT_LENGTHS) + 1`` tokens.
        seeds: distinct, one for each output of draft length + 1 tokens. No more are drawn once refuted.

    Raises:
        UserError: as :func:`lit_eff.runtime.decode.generate`.
    """
    ways = list(product(range(len(runner.exit_layers) - 1), DRAFT_LENGTHS))
    log_wealth_M = np.zeros(len(MISTAKES))
    growth_M, variance_M = np.zeros(len(MISTAKES)), np.zeros(len(MISTAKES))
    sequences, tokens, evidence = 0, 0, 0.0
    for index, seed in enumerate(seeds):
        prompt = prompts[index % len(prompts)]
        e, length = ways[index // len(prompts) % len(ways)]
        request = GenerateRequest(
            *(prompt, length + 1, "lossless"),
            sampling=SamplingParams(temperature=1.0, seed=seed),
            draft_exit=e,
            draft_length=length,
        )
        output = [token for one in generate(runner, request) for token in one.tokens]
        for position, (token, p_V, q_V) in enumerate(_distributions(runner, prompt, output, e)):
            f_MV = _mistaken(p_V, q_V, drafted=position < length)
            # Tokens that the target gives no probability are ruin for the engine, short of infinity.
            log_MV = np.log(0.5 + 0.5 * f_MV / np.maximum(p_V, 1e-100))
            log_wealth_M += log_MV[:, token]
            mean_M = (f_MV * log_MV).sum(axis=1)
            growth_M += mean_M
            variance_M += (f_MV * log_MV**2).sum(axis=1) - mean_M**2
        sequences, tokens = sequences + 1, tokens + len(output)
        evidence = float(np.logaddexp.reduce(log_wealth_M)) - math.log(len(MISTAKES))
        if evidence >= -math.log(alpha):
            break
    needed = math.log(len(MISTAKES) / alpha)
    spread_M = np.sqrt(np.maximum(variance_M, 1e-12))
    power = [NormalDist().cdf(z) for z in ((growth_M - needed) / spread_M).tolist()]
    names = list(MISTAKES)
    return SampledIdentity(
        sequences,
        tokens,
        alpha,
        evidence,
        dict(zip(names, log_wealth_M.tolist(), strict=True)),
        dict(zip(names, power, strict=True)),
    )


def _distributions(
    runner: SegmentRunner, prompt: Prompt, output: Sequence[int], e: int
) -> Iterator[tuple[int, Distribution, Distribution]]:
    """Each token of the output with the target's and exit ``e``'s distribution there, from one plain pass."""
    sequence = SegmentedSequence(runner, [*prompt, *output[:-1]])
    last, logits = len(runner.exit_layers) - 1, {}
    for exit_index in range(last + 1):
        hidden_TC = sequence.run(exit_index)
        if exit_index in (e, last):
            logits[exit_index] = sequence.head(exit_index, hidden_TC[len(prompt) - 1 :])
    for token, p_V, q_V in zip(output, logits[last], logits[e], strict=True):
        yield token, target_distribution(p_V, PLAIN), target_distribution(q_V, PLAIN)


def _mistaken(p_V: Distribution, q_V: Distribution, *, drafted: bool) -> NDArray[np.float64]:
    """The distributions ``(mistakes, V)`` that :data:`MISTAKES` leave; p where one does not show.

    Args:
        drafted: whether this token was drafted and checked, or is the target's own after all drafts.
    """
    common_V = np.minimum(p_V, q_V)
    rejected = 1.0 - common_V.sum()
    redrawn_V = common_V + rejected * p_V
    unnormalised_V = common_V + rejected * (p_V - common_V)
    unnormalised_V[-1] += rejected * (1.0 - rejected)
    sharper_V, flatter_V = p_V**2, np.sqrt(p_V)
    checked = (q_V, redrawn_V, unnormalised_V, p_V) if drafted else (p_V, p_V, p_V, q_V)
    return np.stack([*checked, sharper_V / sharper_V.sum(), flatter_V / flatter_V.sum()])
