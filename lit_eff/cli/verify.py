"""``lit-eff verify``: does a bundle's certificate hold on held-out data? The bundle measures it again.

Exit code 0: not refuted; 1: refuted; 2: bad input.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
from rich.console import Console
from rich.progress import track

from lit_eff.cli.arguments import METRIC_HELP, Parser, check_metric
from lit_eff.errors import UserError, require
from lit_eff.runtime.audit import Audit, audit
from lit_eff.runtime.bundle import Bundle, open_bundle
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.claim import loss_name
from lit_eff.runtime.metrics import TOKEN_METRICS, Metric
from lit_eff.runtime.prompts import Prompt, certified_prompts, read_prompts

SOURCE = "measured: every prompt continued with exits and in full, by the bundle's own graphs"


def main(argv: list[str]) -> int:
    """Check every hash, measure the risk again, and print it beside the certificate's."""
    options = _parser().parse(argv)
    if (options.data is None) == (options.config is None):
        raise UserError("give either --data FILE (prompts) or --config RECIPE (its test split)")
    if not 0.0 < options.alpha < 1.0:
        raise UserError(f"--alpha is {options.alpha}; expected a number strictly between 0 and 1")
    if options.sequences is not None and options.sequences < 1:
        raise UserError(f"--sequences is {options.sequences}; expected at least 1")
    bundle = open_bundle(options.bundle)
    certificate = bundle.certificate
    if certificate is None:
        raise UserError(f"bundle {bundle.path} has no certificate to verify; `lit-eff calibrate` writes one")
    certificate.check_writes()
    metric = _metric(options.metric, bundle, certificate)
    prompts = _prompts(options, bundle, certificate)
    runner = bundle.runner(threads=options.threads)
    bar = track(prompts, "Verifying", console=Console(stderr=True), transient=True)
    result = audit(runner, certificate, bar, alpha=options.alpha, metric=metric)
    if options.json:
        print(json.dumps(_report(bundle, certificate, result, options.alpha), indent=2))
    else:
        print(_summary(bundle, certificate, result, options.alpha))
    return int(result.verdict == "refuted")


def _parser() -> Parser:
    parser = Parser(prog="lit-eff verify", description=__doc__)
    add = parser.add_argument
    add("--bundle", required=True, metavar="DIR", help="a folder that `lit-eff export` wrote")
    add(
        "--data",
        metavar="FILE",
        help=".txt: a prompt a line; .jsonl: text or prompt_tokens, as in a traffic log",
    )
    add("--config", metavar="RECIPE", help="verify on the test split of this recipe's data instead")
    add("--sequences", type=int, metavar="N", help="a random sample of so many; default: all there are")
    add("--alpha", type=float, default=0.05, help="probability of refuting a true guarantee (%(default)s)")
    add("--metric", metavar="FUNCTION", help=METRIC_HELP)
    add("--threads", type=int, metavar="N", help="of the engine; default: one per core")
    add("--json", action="store_true", help="print the report as JSON")
    return parser


def _metric(named: str | None, bundle: Bundle, certificate: Certificate) -> Metric:
    check_metric(certificate, named)
    if certificate.metric in TOKEN_METRICS:
        return TOKEN_METRICS[certificate.metric]
    require("scipy", "train")  # which lit_eff.calibration stands on
    from lit_eff.calibration.text_metrics import find_metric

    return find_metric(certificate.metric, bundle.tokenizer_json)


def _prompts(options: argparse.Namespace, bundle: Bundle, certificate: Certificate) -> list[Prompt]:
    """Distinct prompts in a random order: a file may be sorted, and the test takes one after the other."""
    source = options.data or options.config
    context, steps = bundle.manifest.model["context"], certificate.continuation_length
    length, longest = certificate.prompt_length, context - steps
    if certificate.certifies == "risk_consistency":  # the reference follows the prompt
        assert length is not None
        length, longest = length + steps, context
    if options.data is None:
        found = _of_recipe(options.config, bundle, certificate)
    else:
        found = _of_file(options.data, bundle)
    prompts = certified_prompts(found, length=length, longest=longest)
    if not prompts:
        raise UserError(
            f"{source} holds no prompt to verify on: the certificate needs at least "
            f"{length} tokens a prompt, and at most {longest}"
        )
    order = np.random.default_rng(0).permutation(len(prompts))
    return [prompts[i] for i in order[: options.sequences]]


def _of_file(path: str, bundle: Bundle) -> Iterator[Prompt]:
    from tokenizers import Tokenizer

    if bundle.tokenizer_json is None:
        raise UserError(f"bundle {bundle.path} holds no tokenizer, so it cannot read prompts")
    vocabulary = bundle.manifest.model["vocab_size"]
    return read_prompts(path, Tokenizer.from_str(bundle.tokenizer_json), vocabulary)


def _of_recipe(config: str, bundle: Bundle, certificate: Certificate) -> Iterator[Prompt]:
    from lit_eff.cli.compose import compose
    from lit_eff.cli.lightning import instantiate_data
    from lit_eff.data import LanguageModelData

    data = instantiate_data(compose(config))
    if not isinstance(data, LanguageModelData):
        raise UserError(f"verify needs text data (LanguageModelData); the recipe has {type(data).__name__}")
    if data.tokenizer_json != bundle.tokenizer_json:
        raise UserError("the recipe's data makes another tokenizer than the bundle's")
    if data.split_hashes["test"] != certificate.test.split_sha256:
        Console(stderr=True).print(
            "[yellow]warning:[/] this is not the test split of the certificate: make sure that none of its "
            "documents was calibrated on"
        )
    return (tuple(int(token) for token in document) for document in data.documents("test"))


def _report(bundle: Bundle, certificate: Certificate, result: Audit, alpha: float) -> dict[str, object]:
    return {
        "bundle": str(bundle.path),
        "files_checked": len(bundle.manifest.files),
        "delta": certificate.delta,
        "alpha": alpha,
        **asdict(result),
        "source": SOURCE,
        "certificate": {
            "sentence": certificate.sentence(),
            "risk": certificate.test.risk,
            "layers_per_token": certificate.test.layers_per_token,
            "sequences": certificate.test.sequences,
        },
    }


def _summary(bundle: Bundle, certificate: Certificate, result: Audit, alpha: float) -> str:
    test, layers = certificate.test, certificate.exit_layers[-1]
    low, high = result.interval
    verdicts = {
        "refuted": f"REFUTED: the risk is above the certificate's {certificate.delta:.4g}",
        "confirmed": f"Confirmed: the risk is within the certificate's {certificate.delta:.4g}",
        "open": f"Not refuted: whether the risk is within {certificate.delta:.4g} needs more prompts to tell",
    }
    return "\n".join(
        [
            certificate.sentence(),
            f"{len(bundle.manifest.files)} files are as the manifest says (sha256).",
            f"risk              {result.risk:.4f} on {result.sequences:,} prompts, between {low:.4f} and "
            f"{high:.4f}; the certificate's test split: {test.risk:.4f} on {test.sequences:,}",
            f"layers per token  {result.layers_per_token:.2f} of {layers}; the certificate's test split: "
            f"{test.layers_per_token:.2f}",
            f"{verdicts[result.verdict]} (confidence {1 - alpha:.4g}).",
            *(f"Not measured again: {loss_name(risk)}." for risk in certificate.risks[1:]),
        ]
    )
