"""Bundles: opened only when every byte is the one that was written, and without torch."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_eff.errors import UserError
from lit_eff.export.config import ExportConfig
from lit_eff.export.job import export_bundle
from lit_eff.runtime.bundle import open_bundle
from lit_eff.runtime.manifest import Manifest
from tests.export.models import loaded


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(loaded(), tmp_path_factory.mktemp("bundles") / "tiny", None, ExportConfig())


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "tiny"))


def rewrite_manifest(bundle: Path, change: Callable[[dict[str, Any]], None], *, sign: bool = True) -> None:
    """Edit the manifest, with a digest that fits unless ``sign`` is false."""
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    digest = content.pop("content_sha256")
    change(content)
    if sign:
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**content, "content_sha256": digest}))


def test_a_whole_bundle_opens(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.manifest.formats == ("onnx",)
    assert opened.manifest.exit_layers == (1, 3, 4)
    assert opened.tokenizer_json == loaded().tokenizer_json
    assert opened.certificate is None
    runner = opened.runner(threads=1)
    assert (runner.exit_layers, runner.vocab_size, runner.context) == ((1, 3, 4), 97, 160)


NAMES = ["embed.onnx", "segment_1.onnx", "head.onnx", "weights.bin", "tokenizer.json"]


@pytest.mark.parametrize("name", NAMES)
def test_one_flipped_bit_is_refused(name: str, bundle: Path) -> None:
    path = bundle / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is truncated or altered"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_file_is_refused(name: str, bundle: Path) -> None:
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[:-1])
    with pytest.raises(UserError, match=f"{name} is truncated or altered"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_refused(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        open_bundle(bundle)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        open_bundle(tmp_path)
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        open_bundle(tmp_path / "nowhere")


def test_truncated_manifest(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(UserError, match=r"manifest\.json is truncated or altered"):
        open_bundle(bundle)


def test_altered_manifest(bundle: Path) -> None:
    rewrite_manifest(bundle, lambda content: content["model"].update(context=8), sign=False)
    with pytest.raises(UserError, match=r"manifest\.json was altered"):
        open_bundle(bundle)


def test_newer_format(bundle: Path) -> None:
    rewrite_manifest(bundle, lambda content: content.update(format_version=2, something_new=1))
    with pytest.raises(UserError, match=r"manifest\.json has format 2.*upgrade lit_eff"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/hostname", "a/../../outside.bin"])
def test_files_outside_the_bundle_are_refused(name: str, bundle: Path) -> None:
    rewrite_manifest(bundle, lambda content: content["files"].update({name: "0" * 64}))
    with pytest.raises(UserError, match=r"manifest\.json.*not a path inside the bundle"):
        open_bundle(bundle)


def test_graphs_must_be_hashed_and_match_the_exits(bundle: Path) -> None:
    rewrite_manifest(bundle, lambda content: content["files"].pop("segment_2.onnx"))
    with pytest.raises(UserError, match=r"segment_2\.onnx is used and not listed"):
        open_bundle(bundle)


def test_exits_must_match_the_segments(bundle: Path) -> None:
    rewrite_manifest(bundle, lambda content: content.update(exit_layers=[1, 2, 4]))
    with pytest.raises(UserError, match="do not match exit_layers"):
        open_bundle(bundle)


def test_no_onnx_segments_no_runner(tmp_path: Path) -> None:
    folder = export_bundle(loaded(), tmp_path / "b", None, ExportConfig(("torch",)))
    with pytest.raises(UserError, match="holds torch and no ONNX segments"):
        open_bundle(folder).runner()


def test_manifest_round_trip(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    manifest.save(bundle)
    assert open_bundle(bundle).manifest == manifest
    assert isinstance(manifest, Manifest)


def test_a_bundle_without_an_exit_classifier_does_not_speak_of_one(bundle: Path) -> None:
    """Older engines know no such field, and older bundles' digests were made without it."""
    assert "classifier" not in (bundle / "manifest.json").read_text()
    with pytest.raises(UserError, match="no exit classifier; train one with recipes/exit_classifier"):
        open_bundle(bundle).runner(threads=1).exit_score(np.zeros((1, 64), np.float32))


def test_an_exit_classifier_is_hashed_as_every_graph(bundle: Path) -> None:
    rewrite_manifest(bundle, lambda content: content["onnx"].update(classifier="exit_classifier.onnx"))
    with pytest.raises(UserError, match=r"exit_classifier\.onnx is used and not listed"):
        open_bundle(bundle)


def test_runs_where_torch_and_onnx_are_not_installed(bundle: Path) -> None:
    """A base install: the imports fail, the bundle runs and yields the same bits."""
    script = f"""
import sys
for name in ("torch", "onnx", "onnxscript", "lightning", "safetensors", "scipy"):
    sys.modules[name] = None
import numpy as np
from lit_eff.runtime.bundle import open_bundle
runner = open_bundle({str(bundle)!r}).runner(threads=1)
state, hidden = runner.new_state(), runner.embed(np.arange(5), 0)
for e in range(3):
    hidden = runner.run_segment(state, e, hidden, 0)
print(runner.head(2, hidden).tobytes().hex())
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    runner = open_bundle(bundle).runner(threads=1)
    state, hidden_TC = runner.new_state(), runner.embed(np.arange(5), 0)
    for e in range(3):
        hidden_TC = runner.run_segment(state, e, hidden_TC, 0)
    assert result.stdout.strip() == runner.head(2, hidden_TC).tobytes().hex()
