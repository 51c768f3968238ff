"""``lit-eff calibrate --update``: a new certificate for a bundle, from the traffic its server logged."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from lit_eff.calibration.report import markdown
from lit_eff.calibration.traffic import recalibrate
from lit_eff.cli.arguments import METRIC_HELP, Parser, check_metric
from lit_eff.cli.calibration_run import add_device, bars, calibration_device, resumable
from lit_eff.errors import UserError
from lit_eff.export.torch_format import load_model
from lit_eff.models.checkpoint import LoadedCheckpoint
from lit_eff.runtime.bundle import open_bundle, replace_certificate
from lit_eff.runtime.claim import sentence
from lit_eff.runtime.prompts import certified_prompts, read_prompts


def main(argv: list[str]) -> int:
    """Calibrate on the log; the bundle is replaced once its successor is whole, and untouched otherwise."""
    options = _parser().parse(argv)
    if options.sequences < 1:
        raise UserError(f"--sequences is {options.sequences}; expected at least 1")
    bundle = open_bundle(options.update)
    old, manifest = bundle.certificate, bundle.manifest
    if old is None:
        raise UserError(f"bundle {bundle.path} has no certificate to update; calibrate its checkpoint first")
    old.check_writes()
    check_metric(old, options.metric)
    if bundle.tokenizer_json is None:
        raise UserError(f"bundle {bundle.path} holds no tokenizer, so it cannot read prompts")
    model = load_model(bundle)
    loaded = LoadedCheckpoint(model, bundle.tokenizer_json, {}, {}, manifest.provenance.weights_sha256)
    logged = read_prompts(options.log, Tokenizer.from_str(bundle.tokenizer_json), model.config.vocab_size)
    longest = model.config.context - old.continuation_length
    prompts = certified_prompts(logged, length=None, longest=longest)
    model.to(calibration_device(options.device))
    output = options.output or bundle.path
    command = f"lit-eff calibrate --update {options.update} --log {options.log}"
    with resumable(output, command) as work:
        with bars() as progress:
            new = recalibrate(loaded, old, prompts, most=options.sequences, progress=progress, work=work)
        output = replace_certificate(bundle, new, output)
    if options.json:
        report = {"bundle": str(output), "before": sentence(old), **new.model_dump(mode="json")}
        print(json.dumps(report, indent=2))
    else:
        print(f"{markdown(new)}\nBefore: {sentence(old)}\n{output} holds the new certificate.")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="lit-eff calibrate", description=__doc__)
    add = parser.add_argument
    add("--update", required=True, metavar="DIR", help="a bundle with a certificate and the format torch")
    add(
        "--log",
        required=True,
        metavar="FILE",
        help="of `lit-eff serve --traffic-log`, or prompts as verify reads",
    )
    add("--output", type=Path, metavar="DIR", help="the new bundle; default: the old one is replaced")
    most = "calibrate on so many prompts at most, and test on half as many (%(default)s)"
    add("--sequences", type=int, default=1000, metavar="N", help=most)
    add("--metric", metavar="FUNCTION", help=METRIC_HELP)
    add_device(parser)
    add("--json", action="store_true", help="print the certificate as JSON")
    return parser
