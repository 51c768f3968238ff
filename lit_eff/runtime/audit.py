"""The risk of a certificate measured again, on data it was not made from."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lit_eff.runtime.betting import RiskTest
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.decode import Round
from lit_eff.runtime.metrics import Metric
from lit_eff.runtime.prompts import Prompt
from lit_eff.runtime.risk import Comparison, SequenceLoss, compare
from lit_eff.runtime.segments import SegmentRunner


@dataclass(frozen=True)
class Audit:
    """What the exits did on held-out prompts, all measured.

    Attributes:
        sequences: prompts, each continued both ways.
        risk: their mean loss.
        interval: bounds of the risk, which both hold with probability ``1 - alpha``.
        log_wealth: natural logarithm of the evidence against the guarantee, at the end.
        layers_per_token: mean layer that tokens left at.
        verdict: ``refuted``: were the guarantee true, a result like this had a probability of at most alpha;
            ``confirmed``: the whole interval lies within delta; ``open``: neither.
    """

    sequences: int
    risk: float
    interval: tuple[float, float]
    log_wealth: float
    layers_per_token: float
    verdict: Literal["refuted", "confirmed", "open"]


def audit(
    runner: SegmentRunner,
    certificate: Certificate,
    prompts: Iterable[Prompt],
    *,
    alpha: float,
    metric: Metric | None = None,
) -> Audit:
    """Measure the certified loss on prompts, one at a time (:class:`lit_eff.runtime.betting.RiskTest`).

    Of several certified risks this is the first.

    Args:
        prompts: at least one; a random sample in a random order, none used in calibration. For risk
            consistency each goes on with the reference, the document's own tokens.
        alpha: probability with which a true guarantee may be refuted.
        metric: the certificate's, where it is not one of ``TOKEN_METRICS``.
    """
    test, rule = RiskTest(certificate.delta, alpha), certificate.exit_rule()
    loss, steps = SequenceLoss.of(certificate.risks[0], metric), certificate.continuation_length
    layers, tokens = 0, 0
    for prompt in prompts:
        start, reference = (prompt[:-steps], prompt[-steps:]) if loss.of_reference else (prompt, None)
        done = _finish(compare(runner, start, rule, steps, loss, reference))
        test.update(done.loss)
        layers += int(np.asarray(certificate.exit_layers)[list(done.exits)].sum())
        tokens += len(done.exits)
    interval = test.interval()
    assert test.mean is not None
    return Audit(
        sequences=test.count,
        risk=test.mean,
        interval=interval,
        log_wealth=test.log_wealth,
        layers_per_token=layers / tokens,
        verdict="refuted" if test.alarm else "confirmed" if interval[1] <= certificate.delta else "open",
    )


def _finish(running: Generator[Round, None, Comparison]) -> Comparison:
    while True:
        try:
            next(running)
        except StopIteration as end:
            result: Comparison = end.value
            return result
