"""What a certificate says, in one plain sentence."""

from __future__ import annotations

from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.evidence import Risk

# Of two continuations, as a part of a sentence; a function of the user's own is called by its name.
DIFFERENCES = {
    "token_disagreement": "share of differing tokens",
    "exact_match": "share of continuations that differ",
    "edit_distance": "normalised token edit distance",
    "rouge_l": "1 - ROUGE-L",
    "chrf": "1 - chrF",
    "bleu": "1 - BLEU",
}


def loss_name(risk: Risk) -> str:
    """The loss that a risk is the mean of, in a few words."""
    difference = DIFFERENCES.get(risk.metric, risk.metric)
    return {
        "textual_consistency": f"{difference} from the full model's text",
        "risk_consistency": f"rise of {difference} from the reference",
        "disagreement": "share of labels changed",
        "error": "share of labels that exiting early gets wrong",
    }[risk.certifies]


def sentence(certificate: Certificate) -> str:
    """The guarantee in one plain sentence: how it was had, and what the test split showed."""
    layers, calibrated, tested = certificate.exit_layers[-1], certificate.calibration, certificate.test
    confidence = f"{100 * (1 - certificate.epsilon):.4g}%"
    how = f"{certificate.procedure}, {certificate.p_value}, {calibrated.sequences:,} sequences"
    if certificate.learning is not None:
        how += f", path learned on {certificate.learning.sequences:,} others"
    if certificate.tried is not None:
        how += f", best of {len(certificate.tried)} measures at {certificate.level:.3g} each"
    how = how.replace("_", "-")
    measured = (tested.risk, *(tested.also_risks or ()))
    parts = [_parts(certificate, *each) for each in zip(certificate.risks, measured, strict=True)]
    unit = "sequence" if certificate.classifies else "token"
    if certificate.selected is None:
        promises = " and at once to ".join(f"{verb} {promise}" for verb, promise, _ in parts)
        return (
            f"No exit threshold could be certified, with probability {confidence}, to {promises} "
            f"({how}), so every {unit} runs all {layers} layers."
        )
    promises = " and at once ".join(f"{verb}s {promise}" for verb, promise, _ in parts)
    results = ", ".join(result for *_, result in parts)
    return (
        f"With probability at least {confidence} over the calibration data, exiting early {promises} "
        f"({how}); on {tested.sequences:,} test sequences it {results} and launched "
        f"{tested.layers_per_token:.2f} of {layers} layers per {unit}."
    )


def _parts(certificate: Certificate, certified: Risk, risk: float) -> tuple[str, str, str]:
    """A verb, what it promises, and what the test split showed."""
    delta = certified.delta
    share, tested = f"at most {100 * delta:.4g}%", f"{100 * risk:.1f}%"
    if certified.certifies == "disagreement":
        return "change", f"on average {share} of the labels from the full model's", f"changed {tested}"
    if certified.certifies == "error":
        promise = f"on average {share} of all labels wrong that the full model gets right"
        return "get", promise, f"got {tested} so"
    prompt = "logged" if certificate.prompt_length is None else f"{certificate.prompt_length}-token"
    tokens = f"the {certificate.continuation_length} tokens after a {prompt} prompt"
    difference = DIFFERENCES.get(certified.metric, f"`{certified.metric}`")
    if certified.certifies == "risk_consistency":
        promise = (
            f"the {difference} between {tokens} and the document's own on average by at most {delta:.4g} "
            "over the full model's, no sequence making up for another"
        )
        return "raise", promise, f"raised it by {risk:.4f}"
    if certified.metric == "token_disagreement":
        promise = f"on average {share} of {tokens} from the full model's greedy ones"
        return "change", promise, f"changed {tested}"
    promise = f"{tokens} from the full model's greedy ones by at most {delta:.4g} on average in {difference}"
    return "move", promise, f"moved them by {risk:.4f}"
