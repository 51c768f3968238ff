"""What ``lit-eff verify`` found, as JSON and as text."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from lit_eff.runtime.audit import Audit
from lit_eff.runtime.bundle import Bundle
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.claim import loss_name, sentence
from lit_eff.runtime.greedy_identity import DRAFT_LENGTHS, GreedyIdentity
from lit_eff.runtime.sampled_identity import MISTAKES, SampledIdentity

SOURCES = {
    "greedy_identity": "measured: each prompt continued with drafts and without, by the bundle's own graphs",
    "sampled_distribution": "measured: tokens sampled with drafts, beside their probabilities without; "
    "power is modelled",
    "certificate": "measured: every prompt continued with exits and in full, by the bundle's own graphs",
}
REASONS = {"drafts": "greedy identity and sampled distribution", "certificate": "the certificate"}


@dataclass
class Findings:
    """One attribute a check; ``None`` where it was not made, and ``skipped`` says why.

    Attributes:
        alpha: probability with which a true certificate may be refuted.
        prompts: what drafts were tried on.
    """

    bundle: Bundle
    certificate: Certificate | None
    alpha: float
    prompts: str
    greedy: GreedyIdentity | None = None
    sampled: SampledIdentity | None = None
    audit: Audit | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    def skip(self, check: str, reason: str) -> None:
        """Note a check of ``REASONS`` that was not made."""
        self.skipped[check] = reason

    @property
    def refuted(self) -> bool:
        checks = (self.greedy, self.sampled, self.audit)
        return any(check is not None and check.verdict == "refuted" for check in checks)

    def report(self) -> dict[str, Any]:
        """Plain JSON types."""
        result: dict[str, Any] = {
            "bundle": str(self.bundle.path),
            "files_checked": len(self.bundle.manifest.files),
            "refuted": self.refuted,
            "not_verified": {REASONS[check]: reason for check, reason in self.skipped.items()},
        }
        if self.greedy is not None and self.sampled is not None:
            tried = {"prompts_from": self.prompts}
            for name, check in (("greedy_identity", self.greedy), ("sampled_distribution", self.sampled)):
                found = {**asdict(check), **tried, "verdict": check.verdict, "source": SOURCES[name]}
                result[name] = found
        if self.audit is not None and self.certificate is not None:
            test = self.certificate.test
            result["certificate"] = {
                "sentence": sentence(self.certificate),
                "delta": self.certificate.delta,
                "alpha": self.alpha,
                **asdict(self.audit),
                "source": SOURCES["certificate"],
                "test": {
                    "risk": test.risk,
                    "layers_per_token": test.layers_per_token,
                    "sequences": test.sequences,
                },
            }
        return result

    def summary(self) -> str:
        """For people: a paragraph a check."""
        lines = [f"Files: {len(self.bundle.manifest.files)} are as the manifest says (sha256)."]
        if self.greedy is not None and self.sampled is not None:
            lines += [*_greedy(self.greedy, self.prompts), *_sampled(self.sampled)]
        if self.audit is not None and self.certificate is not None:
            lines += _certificate(self.certificate, self.audit, self.alpha)
        lines += [f"Not verified: {REASONS[check]} ({reason})." for check, reason in self.skipped.items()]
        return "\n".join(lines)


def _greedy(found: GreedyIdentity, prompts: str) -> list[str]:
    lengths = ", ".join(map(str, DRAFT_LENGTHS))
    tried = (
        f"  {found.tokens:,} tokens after {found.prompts} prompts ({prompts}),\n  with every draft exit "
        f"and draft lengths {lengths}; {found.acceptance:.0%} of drafts were kept"
    )
    if not found.mismatches:
        return ["Greedy identity: drafts change no token.", tried]
    first = found.mismatches[0]
    return [
        f"Greedy identity: REFUTED: {len(found.mismatches)} of {found.runs} outputs differ from those "
        "without drafts.",
        tried,
        f"  first: token {first.position} after prompt {first.prompt}, {first.draft_length} drafts from the "
        f"exit after {first.draft_layers} layers",
    ]


def _sampled(found: SampledIdentity) -> list[str]:
    tried = (
        f"  {found.tokens:,} tokens in {found.sequences:,} outputs at temperature 1; evidence against it "
        f"{found.log_wealth:.1f} nats of {-math.log(found.alpha):.1f}, which a right engine reaches with\n"
        f"  probability {found.alpha:g} at most"
    )
    if found.verdict == "refuted":
        likest = max(found.log_wealths, key=found.log_wealths.__getitem__)
        return [
            "Sampled distribution: REFUTED: it is not the full model's.",
            tried,
            f"  it looks most as if {MISTAKES[likest]}",
        ]
    return [
        "Sampled distribution: nothing speaks against its being the full model's.",
        tried,
        "  so many tokens would refute it with probability (modelled)",
        *(f"  {found.power[name]:>6.1%}  if {mistake}" for name, mistake in MISTAKES.items()),
    ]


def _certificate(certificate: Certificate, found: Audit, alpha: float) -> list[str]:
    test, (low, high), layers = certificate.test, found.interval, certificate.exit_layers[-1]
    verdicts = {
        "refuted": f"REFUTED: the risk is above the certificate's {certificate.delta:.4g}",
        "confirmed": f"Confirmed: the risk is within the certificate's {certificate.delta:.4g}",
        "open": f"Not refuted: whether the risk is within {certificate.delta:.4g} needs more prompts to tell",
    }
    return [
        f"Certificate: {sentence(certificate)}",
        f"  risk              {found.risk:.4f} on {found.sequences:,} prompts, between {low:.4f} and "
        f"{high:.4f}; the certificate's test split: {test.risk:.4f} on {test.sequences:,}",
        f"  layers per token  {found.layers_per_token:.2f} of {layers}; the certificate's test split: "
        f"{test.layers_per_token:.2f}",
        f"  {verdicts[found.verdict]} (confidence {1 - alpha:.4g}).",
        *(f"  Not measured again: {loss_name(risk)}." for risk in certificate.risks[1:]),
    ]
