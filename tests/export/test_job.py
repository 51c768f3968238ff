"""The export job: all formats, provenance, certificate, and nothing half-written."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_eff.cli.export import main
from lit_eff.decoding.torch_runner import TorchRunner
from lit_eff.errors import UserError
from lit_eff.export import job
from lit_eff.export.config import ExportConfig
from lit_eff.export.job import export_bundle
from lit_eff.export.torch_format import load_model
from lit_eff.export.verify import logit_errors
from lit_eff.models.checkpoint import LoadedCheckpoint, weights_sha256
from lit_eff.models.config import ExitConfig
from lit_eff.models.huggingface import from_hf
from lit_eff.runtime.bundle import open_bundle
from lit_eff.runtime.certificate import tokenizer_sha256
from lit_eff.runtime.claim import sentence
from tests.export.models import loaded, onnx_runner, tiny_model
from tests.runtime.test_certificate import certificate

ALL = ExportConfig(("onnx", "torch", "hf"))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fitting_certificate(checkpoint: LoadedCheckpoint, **changes: Any) -> Any:
    values = {
        "exit_layers": (1, 3, 4),
        "weights_sha256": checkpoint.weights_sha256,
        "tokenizer_sha256": tokenizer_sha256(checkpoint.tokenizer_json),
    }
    return certificate(**{**values, **changes})


def test_all_formats_in_one_bundle(tmp_path: Path) -> None:
    checkpoint = loaded(tiny_model("llama", "norm"))
    bundle = open_bundle(export_bundle(checkpoint, tmp_path / "b", None, ALL))
    manifest = bundle.manifest
    assert manifest.formats == ("onnx", "torch", "hf")
    assert manifest.onnx is not None
    assert len(manifest.onnx.max_logit_error) == 3
    assert all(0 < error < 1e-4 for error in manifest.onnx.max_logit_error)
    assert weights_sha256(load_model(bundle)) == checkpoint.weights_sha256
    again = from_hf(bundle.path / "hf")
    assert again.config.exits == checkpoint.model.config.exits
    assert weights_sha256(again) == checkpoint.weights_sha256
    assert not [path for path in bundle.path.rglob("*") if path.suffix in {".pkl", ".pt", ".pth", ".ckpt"}]


def test_an_exit_classifier_is_in_every_format(tmp_path: Path) -> None:
    """Checkpoint to bundle to runner: the same layer, the same scores, and a hash of its own."""
    checkpoint = loaded(tiny_model(exits=ExitConfig((1, 3), "norm", classifier=True)))
    bundle = open_bundle(export_bundle(checkpoint, tmp_path / "b", None, ALL))
    assert bundle.manifest.onnx is not None
    assert bundle.manifest.onnx.classifier == "exit_classifier.onnx"
    assert "exit_classifier.onnx" in bundle.manifest.files
    again = load_model(bundle)
    assert weights_sha256(again) == weights_sha256(from_hf(bundle.path / "hf")) == checkpoint.weights_sha256
    onnx, torch_runner = bundle.runner(threads=1), TorchRunner(again)
    hidden_TC = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)
    with torch.no_grad():
        expected_T = checkpoint.model.exit_score(torch.from_numpy(hidden_TC)).numpy()
    for runner in (onnx, torch_runner):
        np.testing.assert_allclose(runner.exit_score(hidden_TC), expected_T, atol=1e-5)


def test_scores_that_differ_from_torchs_are_not_written(tmp_path: Path) -> None:
    model = tiny_model(exits=ExitConfig((1, 3), classifier=True))
    runner = onnx_runner(model, tmp_path / "b")
    assert model.exit_classifier is not None
    with torch.no_grad():
        model.exit_classifier.bias += 1e-2
    with pytest.raises(UserError, match="exported exit scores after layer 1 differ from torch's by 1"):
        logit_errors(model, runner)


def test_provenance_and_decoding_defaults(tmp_path: Path) -> None:
    checkpoint = loaded()
    manifest = open_bundle(export_bundle(checkpoint, tmp_path / "b", None, ExportConfig())).manifest
    about = manifest.provenance
    assert (about.recipe_name, about.overrides) == ("tiny", ("trainer.max_steps=20",))
    assert (about.git_commit, about.split_hashes) == ("0" * 40, {"train": "1" * 64})
    assert about.weights_sha256 == checkpoint.weights_sha256
    assert about.versions["torch"] == torch.__version__
    assert manifest.decoding["mode"] == "lossless"
    assert manifest.decoding["draft_length"] == 3
    assert manifest.model == checkpoint.model.config.to_dict()


def test_a_certificate_goes_along_when_it_fits(tmp_path: Path) -> None:
    checkpoint = loaded()
    fitting = fitting_certificate(checkpoint)
    assert (
        open_bundle(export_bundle(checkpoint, tmp_path / "b", fitting, ExportConfig())).certificate == fitting
    )


@pytest.mark.parametrize("changes", [{"weights_sha256": "0" * 64}, {"tokenizer_sha256": "0" * 64}])
def test_a_certificate_of_another_model_is_refused(changes: dict[str, str], tmp_path: Path) -> None:
    checkpoint = loaded()
    with pytest.raises(UserError, match="the certificate was made for"):
        export_bundle(checkpoint, tmp_path / "b", fitting_certificate(checkpoint, **changes), ExportConfig())
    assert not (tmp_path / "b").exists()


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = (export_bundle(loaded(), tmp_path / name, None, ExportConfig()) for name in "ab")
    assert list(snapshot(one).values()) == list(snapshot(two).values())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_export_leaves_the_old_bundle(
    error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export_bundle(loaded(), tmp_path / "b", None, ExportConfig())
    before = snapshot(tmp_path)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(job, "logit_errors", fail)  # all graphs are written by then
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        export_bundle(loaded(tiny_model("gpt2")), folder, None, ExportConfig())
    assert snapshot(tmp_path) == before
    monkeypatch.undo()
    export_bundle(loaded(tiny_model("gpt2")), folder, None, ExportConfig())
    assert open_bundle(folder).manifest.model["positions"] == "learned"


def test_wrong_logits_are_noticed(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    runner = onnx_runner(model, tmp_path)
    assert max(logit_errors(model, runner)) < 1e-4
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.blocks[3].mlp.down.bias[0] += 0.01
    with pytest.raises(UserError, match="logits after layer 4 differ"):
        logit_errors(other, runner)


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists and is not a bundle"):
        export_bundle(loaded(), tmp_path, None, ExportConfig())
    with pytest.raises(UserError, match="is a file"):
        export_bundle(loaded(), tmp_path / "thesis.txt", None, ExportConfig())
    assert snapshot(tmp_path) == {str(tmp_path / "thesis.txt"): b"years of work"}


def test_formats_are_checked() -> None:
    with pytest.raises(UserError, match="'onx'; did you mean 'onnx'"):
        ExportConfig(("onx",))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="empty"):
        ExportConfig(())


@pytest.fixture
def checkpoint_path(tmp_path: Path) -> Path:
    checkpoint = loaded()
    about = {
        "format": 1,
        "model_config": checkpoint.model.config.to_dict(),
        "tokenizer_json": checkpoint.tokenizer_json,
        "recipe": checkpoint.recipe,
        **checkpoint.metadata,
    }
    state = {f"model.{name}": tensor for name, tensor in checkpoint.model.state_dict().items()}
    path = tmp_path / "run" / "last.ckpt"
    path.parent.mkdir()
    torch.save({"state_dict": state, "lit_eff": about, "global_step": 7}, path)
    return path


def test_command_line(checkpoint_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe's formats and a bundle beside the checkpoint, unless told otherwise."""
    assert main(["--ckpt_path", str(checkpoint_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bundle"] == str(checkpoint_path.parent / "bundle")
    assert (report["formats"], report["certificate"], report["max_logit_error"]) == (["torch"], None, None)

    fitting = fitting_certificate(loaded())
    fitting.save(checkpoint_path.parent / "exits.json")
    told = ["--format", "onnx,hf", "--output", str(tmp_path / "out")]
    assert main(["--ckpt_path", str(checkpoint_path), *told]) == 0
    out = capsys.readouterr().out
    assert "onnx, hf" in out
    assert sentence(fitting) in out
    assert open_bundle(tmp_path / "out").certificate == fitting
    assert main(["--ckpt_path", str(checkpoint_path), *told, "--certificate", "none"]) == 0
    assert open_bundle(tmp_path / "out").certificate is None


def test_command_line_refuses_a_stale_certificate(checkpoint_path: Path) -> None:
    stale = fitting_certificate(loaded(), weights_sha256="0" * 64)
    stale.save(checkpoint_path.parent / "exits.json")
    with pytest.raises(UserError, match="calibrate"):
        main(["--ckpt_path", str(checkpoint_path)])
