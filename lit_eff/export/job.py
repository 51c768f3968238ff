"""Checkpoint to bundle: write every format asked for, check it, hash it, and only then give it its name."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import lit_eff
from lit_eff.errors import UserError
from lit_eff.export.config import ExportConfig
from lit_eff.export.onnx_model import check_supported, write_graphs
from lit_eff.export.torch_format import write_state
from lit_eff.export.verify import logit_errors
from lit_eff.files import atomic_path, sha256_file
from lit_eff.models.checkpoint import LoadedCheckpoint
from lit_eff.models.huggingface import save_hf
from lit_eff.runtime.certificate import Certificate, tokenizer_sha256
from lit_eff.runtime.decoding_config import DecodingConfig
from lit_eff.runtime.manifest import CERTIFICATE, MANIFEST, TOKENIZER, Manifest, Provenance
from lit_eff.runtime.onnx_runner import OnnxRunner

HF_FOLDER = "hf"


def export_bundle(
    loaded: LoadedCheckpoint, output: str | Path, certificate: Certificate | None, config: ExportConfig
) -> Path:
    """Write a bundle and return its folder. An older bundle there is replaced once the new one is whole.

    Raises:
        UserError: for a model a format cannot hold, a certificate of another model, an ``output`` that holds
            something else than a bundle, or ONNX logits that differ from torch's.
    """
    output = Path(output)
    _check_output(output)
    decoding = DecodingConfig.from_dict(loaded.recipe.get("decoding") or {})
    if "onnx" in config.formats:
        check_supported(loaded.model.config)
    if certificate is not None:
        certificate.check(
            weights_sha256=loaded.weights_sha256, tokenizer_sha256=tokenizer_sha256(loaded.tokenizer_json)
        )
    with atomic_path(output) as folder:
        folder.mkdir()
        if loaded.tokenizer_json is not None:
            (folder / TOKENIZER).write_bytes(loaded.tokenizer_json.encode())
        if certificate is not None:
            certificate.save(folder / CERTIFICATE)
        propagate = certificate is not None and certificate.kv_policy == "propagate"
        _write_formats(loaded, folder, config, decoding, propagate).save(folder)
    return output


def _check_output(output: Path) -> None:
    """A folder is replaced as a whole, so it must be a bundle."""
    if output.is_dir() and any(output.iterdir()) and not (output / MANIFEST).is_file():
        raise UserError(
            f"{output} exists and is not a bundle; give --output a new folder or a bundle to replace"
        )
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; give --output a folder")


def _write_formats(
    loaded: LoadedCheckpoint, folder: Path, config: ExportConfig, decoding: DecodingConfig, propagate: bool
) -> Manifest:
    model, formats = loaded.model, config.formats
    onnx, state, hf = None, None, None
    columns = (TextColumn("export: {task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(formats) + 1 + ("onnx" in formats))
        if "onnx" in formats:
            progress.update(task, description="ONNX graphs")
            onnx = write_graphs(model, folder, propagate=propagate)
            progress.update(task, description="comparing logits with torch's", advance=1)
            runner = OnnxRunner(folder, onnx, context=model.config.context)
            onnx = onnx.model_copy(update={"max_logit_error": logit_errors(model, runner)})
            progress.advance(task)
        if "torch" in formats:
            progress.update(task, description="safetensors")
            state = write_state(model, folder)
            progress.advance(task)
        if "hf" in formats:
            progress.update(task, description="Hugging Face folder")
            save_hf(model, folder / HF_FOLDER, tokenizer_json=loaded.tokenizer_json)
            hf = HF_FOLDER
            progress.advance(task)
        progress.update(task, description="hashes")
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}
        progress.advance(task)
    return Manifest(
        model=model.config.to_dict(),
        exit_layers=model.config.exit_layers,
        onnx=onnx,
        torch=state,
        hf=hf,
        decoding=asdict(decoding),
        serve=dict(loaded.recipe.get("serve") or {}),
        provenance=_provenance(loaded),
        files=files,
    )


def _provenance(loaded: LoadedCheckpoint) -> Provenance:
    about = loaded.metadata
    packages = ("onnx", "onnxruntime")
    return Provenance(
        recipe_name=about.get("recipe_name"),
        overrides=tuple(about.get("overrides") or ()),
        git_commit=about.get("git_commit"),
        split_hashes=dict(about.get("split_hashes") or {}),
        weights_sha256=loaded.weights_sha256,
        versions={
            "lit_eff": lit_eff.__version__,
            "torch": torch.__version__,
            **{package: version(package) for package in packages},
        },
    )
