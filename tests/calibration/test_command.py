"""``lit-eff calibrate`` from a checkpoint and text files to the certificate, its summary and the plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lit_eff.cli.main import main
from lit_eff.data import LanguageModelData
from lit_eff.decoding import batched
from lit_eff.models.checkpoint import load_checkpoint
from lit_eff.models.config import ExitConfig, ModelConfig
from lit_eff.models.transformer import Transformer
from lit_eff.runtime.certificate import Certificate, tokenizer_sha256
from lit_eff.runtime.claim import sentence

CALIBRATION = {
    "delta": 0.5,
    "epsilon": 0.1,
    "sequences": 40,
    "test_sequences": 30,
    "prompt_length": 5,
    "continuation_length": 4,
    "thresholds": [0.9, 0.5, 0.1],
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `lit-eff fit` leaves: a recipe, and a checkpoint of an untrained model that carries it."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    words = ["early", "exit", "layer", "token", "risk", "depth", "serve", "train"]
    lines = [" ".join(rng.choice(words, 12)) for _ in range(400)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings: dict[str, Any] = {
        "source": str(folder / "text.txt"),
        "txt_unit": "line",
        "tokenizer": {"vocab_size": 300},
        "context": 32,
        "splits": {"train": 0.4, "validation": 0.1, "calibration": 0.3, "test": 0.2},
        "cache_dir": str(folder / "cache"),
    }
    recipe = {
        "name": "tiny",
        "data": {"class_path": "lit_eff.data.LanguageModelData", "init_args": settings},
        "calibration": CALIBRATION,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    from lit_eff.cli.compose import compose
    from lit_eff.cli.lightning import instantiate_data

    data = instantiate_data(compose(str(folder / "recipe.yaml")))
    assert isinstance(data, LanguageModelData)
    torch.manual_seed(0)
    config = ModelConfig(
        data.vocab_size, layers=3, model_dim=16, heads=2, context=32, exits=ExitConfig((1, 2))
    )
    model = Transformer(config)
    (folder / "checkpoints").mkdir()
    checkpoint = {
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "lit_eff": {
            "format": 1,
            "model_config": config.to_dict(),
            "tokenizer_json": data.tokenizer_json,
            "recipe": recipe,
            "recipe_name": "tiny",
            "overrides": [],
            "git_commit": None,
            "split_hashes": data.split_hashes,
        },
    }
    torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
    return folder


def test_from_checkpoint_to_certificate(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = run_folder / "checkpoints" / "last.ckpt"
    # The recipe comes from the checkpoint, with one override.
    assert main(["calibrate", "--ckpt_path", str(checkpoint), "--json", "calibration.delta=0.6"]) == 0
    printed = json.loads(capsys.readouterr().out)
    certificate = Certificate.load(checkpoint.parent / "exits.json")
    assert printed == {
        "certificate": str(checkpoint.parent / "exits.json"),
        **certificate.model_dump(mode="json"),
    }
    assert certificate.delta == 0.6
    assert (certificate.calibration.sequences, certificate.test.sequences) == (40, 30)
    assert certificate.train_sha256 is not None
    loaded = load_checkpoint(checkpoint)
    certificate.check(
        weights_sha256=loaded.weights_sha256, tokenizer_sha256=tokenizer_sha256(loaded.tokenizer_json)
    )
    assert sentence(certificate) in (checkpoint.parent / "exits.md").read_text()
    assert list(run_folder.glob("events.out.tfevents.*")), "the plots go to the run's TensorBoard folder"


def test_vectors_are_learned_on_the_validation_split(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, output = run_folder / "checkpoints" / "last.ckpt", tmp_path / "exits.json"
    words = ["calibrate", "--ckpt_path", str(checkpoint), "--output", str(output)]
    words += ["calibration.delta=0.9", "calibration.procedure=split_fixed_sequence"]
    words += ["calibration.thresholds=[0.02,0.01,0.005,0.002,0.001,0.0005]"]  # the model knows nothing yet
    assert main([*words, "calibration.learning_sequences=20"]) == 0
    made, hashes = Certificate.load(output), load_checkpoint(checkpoint).metadata["split_hashes"]
    assert made.learning is not None
    assert (made.learning.sequences, made.learning.split_sha256) == (20, hashes["validation"])
    assert "path learned on 20 others" in capsys.readouterr().out
    assert "threshold after layer 1 | threshold after layer 2" in output.with_suffix(".md").read_text()
    assert main([*words, "calibration.learning_sequences=4000"]) == 2
    assert "the validation split has" in capsys.readouterr().err
    assert (
        main([*words, "calibration.learning_sequences=20", "calibration.measure=[entropy,max_probability]"])
        == 0
    )
    assert [one.measure for one in Certificate.load(output).tried or ()] == ["entropy", "max_probability"]
    path = ["calibration.thresholds=[[null,0.9],[0.5,0.1]]", "calibration.procedure=fixed_sequence"]
    assert main([*words, *path]) == 0
    assert [one.label for one in Certificate.load(output).candidates] == ["never, 0.9", "0.5, 0.1"]


def test_another_output_and_a_recipe_by_path(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = run_folder / "elsewhere" / "mine.json"
    arguments = ["--ckpt_path", str(run_folder / "checkpoints" / "last.ckpt"), "--output", str(output)]
    assert main(["calibrate", *arguments, "--config", str(run_folder / "recipe.yaml")]) == 0
    assert sentence(Certificate.load(output)) in capsys.readouterr().out


def test_verify_takes_the_recipes_test_split(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Most of its prompts are those that the certificate was tested on, so the figures are close."""
    checkpoint, bundle = str(run_folder / "checkpoints" / "last.ckpt"), str(tmp_path / "bundle")
    certificate = str(tmp_path / "exits.json")
    every = ["calibration.test_sequences=60", "calibration.delta=0.9"]
    assert main(["calibrate", "--ckpt_path", checkpoint, "--output", certificate, *every]) == 0
    assert main(["export", "--ckpt_path", checkpoint, "--certificate", certificate, "--output", bundle]) == 0
    capsys.readouterr()
    verify = ["verify", "--bundle", bundle, "--threads", "1", "--json"]
    assert main([*verify, "--config", str(run_folder / "recipe.yaml")]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)["certificate"]
    assert report["verdict"] == "confirmed"
    assert report["risk"] == pytest.approx(report["test"]["risk"], abs=0.1)
    assert "not the test split" not in captured.err
    assert main([*verify, "--config", str(run_folder / "recipe.yaml"), "--sequences", "5"]) == 0
    assert json.loads(capsys.readouterr().out)["certificate"]["sequences"] == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["calibration.delta=0.001"], "at least"),
        (["calibration.delta=7"], "delta is 7"),
        (["calibration.delt=0.1"], "delt'"),
        (["calibration.prompt_length=null"], "prompt_length is null"),
        (["calibration.sequences=4000"], "the calibration split has"),
        (["data.init_args.tokenizer.vocab_size=280"], "another tokenizer"),
        (["--ouput", "x"], "did you mean '--output'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    output = tmp_path / "exits.json"
    arguments = ["--ckpt_path", str(run_folder / "checkpoints" / "last.ckpt"), "--output", str(output)]
    arguments += ["--config", str(run_folder / "recipe.yaml")]
    assert main(["calibrate", *arguments, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert not list(tmp_path.iterdir())


def test_data_split_otherwise_warns(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--ckpt_path", str(run_folder / "checkpoints" / "last.ckpt")]
    arguments += ["--config", str(run_folder / "recipe.yaml"), "--output", str(tmp_path / "exits.json")]
    arguments += ["data.init_args.splits.train=0.3", "data.init_args.splits.calibration=0.4"]
    tokenizer = run_folder / "tokenizer.json"
    tokenizer.write_text(load_checkpoint(run_folder / "checkpoints" / "last.ckpt").tokenizer_json or "")
    assert main(["calibrate", *arguments, f"data.init_args.tokenizer.path={tokenizer}"]) == 0
    assert "not split as it was in training" in " ".join(capsys.readouterr().err.split())
    assert Certificate.load(tmp_path / "exits.json").train_sha256 is None


def test_ctrl_c_keeps_what_was_generated_and_says_how_to_go_on(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, checkpoint = tmp_path / "mine.json", run_folder / "checkpoints" / "last.ckpt"
    words = ["calibrate", "--ckpt_path", str(checkpoint), "calibration.batch_size=16"]
    original, batches = batched._continue, []

    def interrupted(model, batch, *rest):
        batches.append(batch)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return original(model, batch, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(batched, "_continue", interrupted)
        assert main([*words, "--output", str(output)]) == 130
    error = capsys.readouterr().err
    assert "resuming" not in error
    assert f"is kept in {output}.partial; `lit-eff calibrate --ckpt_path {checkpoint}`" in error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json.partial"]

    assert main([*words, "--output", str(output)]) == 0
    assert "resuming: 32 of 40 calibration sequences" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"mine.json", "mine.md", "mine.png"}
