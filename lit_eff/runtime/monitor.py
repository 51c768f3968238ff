"""Running estimates of a deployed certificate: where tokens exit, how confident exits are, and the risk.

The state is small whatever the traffic, is plain JSON, and survives a restart: losing it would forget
evidence, and a test begun anew has a new chance of a false alarm.

Shapes: E exits, B bins.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_eff.errors import UserError
from lit_eff.files import atomic_path
from lit_eff.runtime.betting import RiskTest
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.claim import DIFFERENCES, loss_name
from lit_eff.runtime.decode import Round
from lit_eff.runtime.evidence import Risk
from lit_eff.runtime.random_numbers import Purpose, random_word
from lit_eff.runtime.risk import unwatchable, watched

FORMAT_VERSION = 1
BINS = 20  # of equal width over [0, 1], where every confidence measure lies


class Monitor:
    """What is known about one certificate from the traffic it is applied to.

    Args:
        certificate: whose exit rule is deployed.
        alpha: probability with which the alarm may be false, over the whole life of the certificate.

    Attributes:
        requests: requests that the certificate speaks of, sampled or not; the position of the next draw.
        exits_E: int64, tokens by the exit they came from.
        confidence_EB: int64, confidences of each early exit by bin. An exit is asked only about tokens that
            no shallower one let go.
        risk: the one that is watched; ``None``: none can be.
        test: of that risk, on the sampled requests.
    """

    def __init__(self, certificate: Certificate, *, alpha: float) -> None:
        self.certificate = certificate
        self._certificate_sha256 = certificate.sha256
        exits = len(certificate.exit_layers)
        self.requests = 0
        self.exits_E: NDArray[np.int64] = np.zeros(exits, np.int64)
        self.confidence_EB: NDArray[np.int64] = np.zeros((exits - 1, BINS), np.int64)
        self.risk = watched(certificate)
        self.test = RiskTest((self.risk or certificate.risks[0]).delta, alpha)

    def observe(self, one: Round) -> None:
        """Count a round that the certificate's exit rule decoded."""
        assert one.exit_index is not None
        self.exits_E[one.exit_index] += len(one.tokens)
        for e, confidence in one.confidences:
            self.confidence_EB[e, min(int(confidence * BINS), BINS - 1)] += 1

    def draw(self, share: float, seed: int) -> bool:
        """Whether to run the next request in full too: with probability ``share``, whatever is in it.

        The random number depends on the seed and the number of the request alone, so it can be had again.
        """
        word = random_word(seed, self.requests, Purpose.SHADOW)
        self.requests += 1
        return word < share * 2.0**64

    @property
    def layers_per_token(self) -> float | None:
        """Mean of the layers that tokens left at; ``None`` before the first."""
        tokens = int(self.exits_E.sum())
        return float(self.exits_E @ np.asarray(self.certificate.exit_layers)) / tokens if tokens else None

    def report(self) -> dict[str, Any]:
        """Everything in one JSON object, measured."""
        test, layers = self.test, self.certificate.exit_layers
        low, high = test.interval()
        return {
            "sentence": self.sentence(),
            "certificate_sha256": self._certificate_sha256,
            "delta": test.delta,
            "alpha": test.alpha,
            "requests": self.requests,
            "run_in_full": test.count,
            "risk": test.mean,
            "risk_interval": [low, high],
            "log_wealth": test.log_wealth,
            "alarm_log_wealth": -math.log(test.alpha),
            "alarm_at": test.alarm_at,
            "layers_per_token": self.layers_per_token,
            "tokens_by_layer": {str(layer): int(n) for layer, n in zip(layers, self.exits_E, strict=True)},
            "confidences_by_layer": {
                str(layer): bins.tolist() for layer, bins in zip(layers, self.confidence_EB, strict=False)
            },
        }

    def sentence(self) -> str:
        """The state of the guarantee in one plain sentence."""
        if self.certificate.selected is None:
            return "The certificate never exits early, so there is no risk to watch."
        if self.risk is None:
            reasons = "; ".join(str(unwatchable(risk)) for risk in self.certificate.risks)
            return f"The risk cannot be watched here: {reasons}. Exits and confidences are counted."
        others = ", ".join(loss_name(risk) for risk in self.certificate.risks if risk != self.risk)
        return self._of_risk(self.risk) + (f" Not watched: {others}." if others else "")

    def _of_risk(self, risk: Risk) -> str:
        test, delta = self.test, 100 * risk.delta
        if test.mean is None:
            return (
                f"None of {self.requests:,} certified requests has been run in full, so nothing is known yet."
            )
        low, high = test.interval()
        changed = f"exits changed {test.mean:.2%} of their tokens"
        if risk.metric != "token_disagreement":
            changed = f"their {DIFFERENCES[risk.metric]} was {test.mean:.2%}"
        measured = (
            f"of {self.requests:,} certified requests {test.count:,} were run in full as well; "
            f"{changed} (between {low:.2%} and {high:.2%} with confidence "
            f"{1 - test.alpha:.4g}), where the certificate allows {delta:.4g}%"
        )
        if test.alarm:
            return (
                "ALARM: the certificate's guarantee does not hold on this traffic "
                f"(found with the {test.alarm_at:,}th request run in full): {measured}."
            )
        evidence = math.exp(min(test.log_wealth, 700.0))
        return f"No alarm: {measured}; the evidence against it is {evidence:.3g} of {1 / test.alpha:,.4g}."

    def save(self, path: str | Path) -> None:
        """Write the state, whole or not at all."""
        content = {
            "format_version": FORMAT_VERSION,
            "certificate_sha256": self._certificate_sha256,
            "requests": self.requests,
            "exits": self.exits_E.tolist(),
            "confidences": self.confidence_EB.tolist(),
            "risk": self.test.to_dict(),
        }
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, certificate: Certificate, *, alpha: float) -> Monitor:
        """Go on from a file; from nothing where there is no file, or one about another certificate.

        Raises:
            UserError: for a file that is damaged or of another format.
        """
        monitor = cls(certificate, alpha=alpha)
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format_version is {content['format_version']}, not {FORMAT_VERSION}")
            if content["certificate_sha256"] != monitor._certificate_sha256:
                return monitor
            monitor.requests = int(content["requests"])
            for name, counts in (("exits", monitor.exits_E), ("confidences", monitor.confidence_EB)):
                stored = np.array(content[name], np.int64)
                if stored.shape != counts.shape:
                    raise ValueError(f"{name} has shape {stored.shape}, not {counts.shape}")
                counts[...] = stored
            monitor.test = RiskTest.from_dict(content["risk"], delta=monitor.test.delta, alpha=alpha)
        except FileNotFoundError:
            return monitor
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"monitor state {path} cannot be read ({error}); repair it, or move it away to begin anew"
            ) from None
        return monitor
