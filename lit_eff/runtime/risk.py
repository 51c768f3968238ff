"""The loss that a certificate is about: what early exits write against what the full model writes.

One definition, for the calibrate job (which runs whole batches with torch), for a server that runs a share of
its requests in full as well, and for ``lit-eff verify``.

Shapes: B sequences, K exit rules, N continuation tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_eff.errors import UserError
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.decode import GenerateRequest, Mode, Round, generate
from lit_eff.runtime.evidence import Risk
from lit_eff.runtime.exit_rule import ExitRule
from lit_eff.runtime.metrics import TOKEN_METRICS, Metric, Tokens, token_disagreement
from lit_eff.runtime.segments import SegmentRunner

BOTH: tuple[Mode, ...] = ("autoregressive", "certified")


@dataclass(frozen=True)
class SequenceLoss:
    """The loss of one sequence, in [0, 1] (Schuster et al. 2022, section 4).

    Attributes:
        metric: a dissimilarity D of two continuations.
        of_reference: ``False`` is textual consistency, ``D(early, full)``; ``True`` is risk consistency,
            ``max(0, D(early, reference) - D(full, reference))``.
    """

    metric: Metric
    of_reference: bool = False

    @classmethod
    def of(cls, risk: Risk, metric: Metric | None = None) -> SequenceLoss:
        """That of a certified risk; its metric is needed where it is not one of ``TOKEN_METRICS``."""
        found = TOKEN_METRICS[risk.metric] if metric is None else metric
        return cls(found, risk.certifies == "risk_consistency")

    def __call__(self, early: Tokens, full: Tokens, reference: Tokens | None = None) -> float:
        if not self.of_reference:
            return self.metric(early, full)
        assert reference is not None
        return max(0.0, self.metric(early, reference) - self.metric(full, reference))

    def of_rules(
        self,
        tokens_KBN: NDArray[np.int64],
        reference_BN: NDArray[np.int64] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float64]:
        """Of each sequence under each rule, float64 ``(B, K)``; rule 0 is the full model.

        Args:
            progress: called with (sequences done, sequences in all).
        """
        rules, sequences, _ = tokens_KBN.shape
        losses_BK = np.empty((sequences, rules))
        for b in range(sequences):
            reference = None if reference_BN is None else reference_BN[b].tolist()
            texts: list[tuple[int, ...]] = list(map(tuple, tokens_KBN[:, b].tolist()))
            # Many rules write the same text, and a metric of text takes a millisecond.
            of_text = {text: self(text, texts[0], reference) for text in dict.fromkeys(texts)}
            losses_BK[b] = [of_text[text] for text in texts]
            if progress is not None:
                progress(b + 1, sequences)
        return losses_BK


def unwatchable(risk: Risk) -> str | None:
    """Why a server cannot measure a certified risk on its traffic; ``None`` where it can."""
    if risk.certifies == "risk_consistency":
        return "risk consistency needs a reference text, and a request has none"
    if risk.metric not in TOKEN_METRICS:
        return f"the metric {risk.metric} is of text, and needs the training install or code of yours"
    return None


def watched(certificate: Certificate) -> Risk | None:
    """The first of a certificate's risks that a server can measure on its traffic, if there is one."""
    return next((risk for risk in certificate.risks if unwatchable(risk) is None), None)


DISAGREEMENT = SequenceLoss(token_disagreement)


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
    runner: SegmentRunner,
    prompt_tokens: Sequence[int],
    rule: ExitRule,
    steps: int,
    loss: SequenceLoss = DISAGREEMENT,
    reference: Tokens | None = None,
) -> Generator[Round, None, Comparison]:
    """Continue a prompt by exactly ``steps`` greedy tokens, in full and under the rule, and compare.

    Yields after every round, so that other work may go between; nothing is computed meanwhile. Both run free,
    without stop tokens, as in calibration: the loss depends on the prompt alone, not on where some answer to
    it happened to end.

    Args:
        reference: the ``steps`` tokens that a loss of risk consistency compares both with.

    Raises:
        UserError: for a prompt that is empty, or leaves no room in the context for the continuation.
    """
    prompt = tuple(prompt_tokens)
    if len(prompt) + steps > runner.context:
        raise UserError(
            f"the prompt has {len(prompt)} tokens, which leaves no room for {steps} more in the context of "
            f"{runner.context}"
        )
    texts: dict[Mode, list[int]] = {mode: [] for mode in BOTH}
    exits: list[int] = []
    for mode in BOTH:
        request = GenerateRequest(prompt, max_tokens=steps, mode=mode, exit_rule=rule)
        for one in generate(runner, request):
            texts[mode].append(one.tokens[0])
            if mode == "certified":
                assert one.exit_index is not None
                exits.append(one.exit_index)
            yield one
    return Comparison(loss(texts["certified"], texts["autoregressive"], reference), tuple(exits))
