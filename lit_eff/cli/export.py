"""``lit-eff export``: a checkpoint, with its certificate if there is one, becomes a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_eff.cli.arguments import Parser
from lit_eff.export.config import ExportConfig
from lit_eff.export.job import export_bundle
from lit_eff.models.checkpoint import LoadedCheckpoint, load_checkpoint
from lit_eff.runtime.bundle import Bundle, open_bundle
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.claim import sentence
from lit_eff.runtime.manifest import CERTIFICATE


def main(argv: list[str]) -> int:
    """Write the bundle, open it again (every hash is checked), and report what it holds."""
    options = _parser().parse(argv)
    loaded = load_checkpoint(options.ckpt_path)
    config = _config(options.format, loaded)
    output = options.output or options.ckpt_path.parent / "bundle"
    certificate = _certificate(options.certificate, options.ckpt_path)
    bundle = open_bundle(export_bundle(loaded, output, certificate, config))
    print(json.dumps(_report(bundle), indent=2) if options.json else _summary(bundle))
    return 0


def _parser() -> Parser:
    parser = Parser(prog="lit-eff export", description=__doc__)
    add = parser.add_argument
    add("--ckpt_path", type=Path, required=True, metavar="CKPT", help="a checkpoint of `lit-eff fit`")
    add("--format", metavar="NAMES", help="onnx,torch,hf: one or more; default: the recipe's")
    add("--output", type=Path, metavar="DIR", help="the bundle; default: `bundle` beside the checkpoint")
    beside = f"default: {CERTIFICATE} beside the checkpoint, if there is one"
    add("--certificate", metavar="FILE", help=f"certificate to include, or none; {beside}")
    add("--json", action="store_true", help="print the report as JSON")
    return parser


def _config(names: str | None, loaded: LoadedCheckpoint) -> ExportConfig:
    formats: Any = names.split(",") if names else (loaded.recipe.get("export") or {}).get("formats", ["onnx"])
    return ExportConfig(tuple(dict.fromkeys(formats)))


def _certificate(asked: str | None, checkpoint: Path) -> Certificate | None:
    if asked == "none":
        return None
    if asked is not None:
        return Certificate.load(asked)
    beside = checkpoint.parent / CERTIFICATE
    return Certificate.load(beside) if beside.is_file() else None


def _megabytes(bundle: Bundle) -> float:
    return sum((bundle.path / name).stat().st_size for name in bundle.manifest.files) / 1e6


def _report(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    errors = None
    if manifest.onnx is not None:
        errors = {
            "per_exit": manifest.onnx.max_logit_error,
            "source": "measured: ONNX Runtime against torch in float32 on random tokens",
        }
    return {
        "bundle": str(bundle.path),
        "formats": manifest.formats,
        "exit_layers": manifest.exit_layers,
        "certificate": bundle.certificate and sentence(bundle.certificate),
        "megabytes": round(_megabytes(bundle), 2),
        "max_logit_error": errors,
        "weights_sha256": manifest.provenance.weights_sha256,
    }


def _summary(bundle: Bundle) -> str:
    manifest = bundle.manifest
    lines = [f"{bundle.path}: {', '.join(manifest.formats)}, {_megabytes(bundle):.1f} MB"]
    if manifest.onnx is not None:
        worst = max(manifest.onnx.max_logit_error)
        lines.append(f"logits within {worst:.1e} of torch's at every exit (measured)")
    if bundle.certificate is None:
        lines.append("no certificate: mode certified will refuse; `lit-eff calibrate` writes one")
    else:
        lines.append(sentence(bundle.certificate))
    return "\n".join(lines)
