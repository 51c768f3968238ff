"""A bundle, opened: every file checked against :mod:`lit_eff.runtime.manifest` before anything is used.

And a bundle given another certificate, where a new calibration replaces the old.
"""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path

from lit_eff.errors import UserError
from lit_eff.files import atomic_path, sha256_file
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.manifest import CERTIFICATE, TOKENIZER, Manifest, read_manifest
from lit_eff.runtime.onnx_runner import OnnxRunner


class Bundle:
    """An opened bundle: every hash was checked.

    Attributes:
        path: the folder.
        manifest: what it holds.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @cached_property
    def tokenizer_json(self) -> str | None:
        """The tokenizer in Hugging Face ``tokenizers`` JSON, if the bundle has one."""
        if TOKENIZER not in self.manifest.files:
            return None
        return (self.path / TOKENIZER).read_text(encoding="utf-8")

    @cached_property
    def certificate(self) -> Certificate | None:
        """The certificate, checked against the weights and the tokenizer; ``None`` if the bundle has none.

        Raises:
            UserError: for a certificate of another model.
        """
        if CERTIFICATE not in self.manifest.files:
            return None
        certificate = Certificate.load(self.path / CERTIFICATE)
        certificate.check(
            weights_sha256=self.manifest.provenance.weights_sha256,
            tokenizer_sha256=self.manifest.files.get(TOKENIZER),
        )
        return certificate

    def runner(self, threads: int | None = None) -> OnnxRunner:
        """An engine over the ONNX segments.

        Args:
            threads: of ONNX Runtime's pool; ``None``: one per core.

        Raises:
            UserError: for a bundle without the ``onnx`` format.
        """
        if self.manifest.onnx is None:
            raise UserError(
                f"bundle {self.path} holds {', '.join(self.manifest.formats)} and no ONNX segments; "
                "export it again with --format onnx"
            )
        return OnnxRunner(
            self.path, self.manifest.onnx, context=self.manifest.model["context"], threads=threads
        )


def replace_certificate(bundle: Bundle, certificate: Certificate, output: str | Path) -> Path:
    """Write a copy of a bundle with another certificate, whole or not at all.

    Args:
        output: may be the bundle's own folder, which the copy then replaces.

    Raises:
        UserError: for a certificate of another model.
    """
    output, manifest = Path(output), bundle.manifest
    certificate.check(
        weights_sha256=manifest.provenance.weights_sha256, tokenizer_sha256=manifest.files.get(TOKENIZER)
    )
    with atomic_path(output) as folder:
        folder.mkdir()
        for name in manifest.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, folder / name)
        certificate.save(folder / CERTIFICATE)
        files = {**manifest.files, CERTIFICATE: sha256_file(folder / CERTIFICATE)}
        manifest.model_copy(update={"files": dict(sorted(files.items()))}).save(folder)
    return output


def open_bundle(folder: str | Path) -> Bundle:
    """Open a bundle and check the hash of every file.

    Raises:
        UserError: naming the file that is missing, truncated, altered or of a newer format.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"bundle {folder}: {name} is missing; export the bundle again")
        if sha256_file(path) != expected:
            raise UserError(
                f"bundle {folder}: {name} is truncated or altered (sha256 differs); export it again"
            )
    return Bundle(folder, manifest)
