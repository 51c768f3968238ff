"""``lit-eff verify``: does a bundle do what it promises? The bundle's own graphs are run to find out.

Four checks: the hash of every file; greedy output with drafts against greedy output without; the distribution
of sampled output with drafts; and, given prompts that it was not made from, the certificate's risk.

Exit code 0: nothing refuted; 1: something refuted; 2: bad input.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer

from lit_eff.cli.arguments import METRIC_HELP, Parser, check_metric
from lit_eff.cli.verify_report import Findings
from lit_eff.errors import UserError, require
from lit_eff.runtime.audit import audit
from lit_eff.runtime.bundle import Bundle, open_bundle
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.greedy_identity import TOKENS, greedy_identity
from lit_eff.runtime.metrics import TOKEN_METRICS, Metric
from lit_eff.runtime.prompts import Prompt, certified_prompts, made_prompts, read_prompts
from lit_eff.runtime.sampled_identity import sampled_identity

LONGEST = 32  # tokens of a prompt that drafts are tried on
Item = TypeVar("Item")


def main(argv: list[str]) -> int:
    """Run every check that can be, and print what each found."""
    options = _parser().parse(argv)
    if options.data is not None and options.config is not None:
        raise UserError("give either --data FILE (prompts) or --config RECIPE (its test split)")
    if not 0.0 < options.alpha < 1.0:
        raise UserError(f"--alpha is {options.alpha}; expected a number strictly between 0 and 1")
    for name in ("sequences", "prompts", "draws"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; expected at least 1")
    bundle = open_bundle(options.bundle)
    certificate = bundle.certificate
    if certificate is not None:
        certificate.check_writes()
    source = options.data or options.config
    held_out: list[Prompt] = []
    metric = None
    if certificate is not None and source is not None:
        metric = _metric(options.metric, bundle, certificate)
        held_out = _held_out(options, bundle, certificate)
    trials, kind = _trials(options, bundle, held_out)
    runner = bundle.runner(threads=options.threads)
    findings = Findings(bundle, certificate, options.alpha, kind)
    if len(runner.exit_layers) == 1:
        findings.skip("drafts", "the bundle has no early exit, so there is nothing to draft with")
    else:
        findings.greedy = greedy_identity(runner, _bar(trials, "Greedy identity"))
        # Not kept in a variable: the bar goes when it is dropped, and a refutation ends it early.
        findings.sampled = sampled_identity(
            runner, trials, _bar(range(options.draws), "Sampled distribution")
        )
    if certificate is None:
        findings.skip("certificate", "the bundle has none; `lit-eff calibrate` writes one")
    elif source is None:
        findings.skip(
            "certificate",
            "that takes prompts it was not made from: --data FILE, or --config RECIPE for its test split",
        )
    else:
        findings.audit = audit(
            runner, certificate, _bar(held_out, "Certificate"), alpha=options.alpha, metric=metric
        )
    print(json.dumps(findings.report(), indent=2) if options.json else findings.summary())
    return int(findings.refuted)


def _bar(items: Iterable[Item], name: str) -> Iterable[Item]:
    return track(items, name, console=Console(stderr=True), transient=True)


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
    add(
        "--sequences", type=int, metavar="N", help="test the certificate on a sample of so many; default: all"
    )
    text = "try drafts on so many (%(default)s): of the data, or else plain sentences and random tokens"
    add("--prompts", type=int, metavar="N", default=8, help=text)
    text = "outputs sampled with drafts (%(default)s); more find smaller mistakes"
    add("--draws", type=int, metavar="N", default=200, help=text)
    add("--alpha", type=float, default=0.05, help="probability of refuting a true certificate (%(default)s)")
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


def _trials(options: argparse.Namespace, bundle: Bundle, held_out: list[Prompt]) -> tuple[list[Prompt], str]:
    """Prompts to try drafts on, and what they are."""
    longest = max(1, min(LONGEST, bundle.manifest.model["context"] - TOKENS))
    if options.data is None and options.config is None:
        tokenizer = None if bundle.tokenizer_json is None else Tokenizer.from_str(bundle.tokenizer_json)
        prompts = made_prompts(options.prompts, bundle.manifest.model["vocab_size"], tokenizer)
        kind = "random tokens" if tokenizer is None else "plain sentences, then random tokens"
        return [prompt[:longest] for prompt in prompts], kind
    cut = (prompt[:longest] for prompt in held_out or _found(options, bundle) if prompt)
    distinct = list(dict.fromkeys(cut))[: options.prompts]
    if not distinct:
        raise UserError(f"{options.data or options.config} holds no prompt to verify on")
    return distinct, str(options.data or options.config)


def _found(options: argparse.Namespace, bundle: Bundle) -> Iterator[Prompt]:
    return _of_recipe(options.config, bundle) if options.data is None else _of_file(options.data, bundle)


def _held_out(options: argparse.Namespace, bundle: Bundle, certificate: Certificate) -> list[Prompt]:
    """Distinct prompts in a random order: a file may be sorted, and the test takes one after the other."""
    source = options.data or options.config
    context, steps = bundle.manifest.model["context"], certificate.continuation_length
    length, longest = certificate.prompt_length, context - steps
    if certificate.certifies == "risk_consistency":  # the reference follows the prompt
        assert length is not None
        length, longest = length + steps, context
    prompts = certified_prompts(_found(options, bundle), length=length, longest=longest)
    if not prompts:
        raise UserError(
            f"{source} holds no prompt to verify on: the certificate needs at least "
            f"{length} tokens a prompt, and at most {longest}"
        )
    order = np.random.default_rng(0).permutation(len(prompts))
    return [prompts[i] for i in order[: options.sequences]]


def _of_file(path: str, bundle: Bundle) -> Iterator[Prompt]:
    if bundle.tokenizer_json is None:
        raise UserError(f"bundle {bundle.path} holds no tokenizer, so it cannot read prompts")
    vocabulary = bundle.manifest.model["vocab_size"]
    return read_prompts(path, Tokenizer.from_str(bundle.tokenizer_json), vocabulary)


def _of_recipe(config: str, bundle: Bundle) -> Iterator[Prompt]:
    from lit_eff.cli.compose import compose
    from lit_eff.cli.lightning import instantiate_data
    from lit_eff.data import LanguageModelData

    data = instantiate_data(compose(config))
    if not isinstance(data, LanguageModelData):
        raise UserError(f"verify needs text data (LanguageModelData); the recipe has {type(data).__name__}")
    if data.tokenizer_json != bundle.tokenizer_json:
        raise UserError("the recipe's data makes another tokenizer than the bundle's")
    certificate = bundle.certificate
    if certificate is not None and data.split_hashes["test"] != certificate.test.split_sha256:
        Console(stderr=True).print(
            "[yellow]warning:[/] this is not the test split of the certificate: make sure that none of its "
            "documents was calibrated on"
        )
    return (tuple(int(token) for token in document) for document in data.documents("test"))
