"""What a run leaves to be read: artifacts, picture, samples, summary line, bar."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_eff.data.classification import ClassificationData
from lit_eff.data.tokenizer import TokenizerConfig
from lit_eff.errors import UserError
from lit_eff.models.checkpoint import load_checkpoint
from lit_eff.models.config import ExitConfig
from lit_eff.models.transformer import Transformer
from lit_eff.training import LitClassifier
from lit_eff.training.callbacks import (
    EMA,
    DepthQualityPlot,
    RunArtifacts,
    RunProgress,
    RunSummary,
    SampleGenerations,
    Throughput,
    git_commit,
)
from lit_eff.training.callbacks.depth_plot import TAG, depth_curves, draw
from lit_eff.training.callbacks.samples import greedy
from tests.training.callbacks.tiny import make_config, make_data, make_module, make_trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, text: Path) -> tuple[Trainer, str]:
    """A finished run with every report, and what it printed to stderr."""
    folder = tmp_path_factory.mktemp("run")
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", shown)
        trainer = make_trainer(
            folder,
            RunProgress(seconds=0),
            RunSummary(),
            DepthQualityPlot(),
            SampleGenerations(prompts=2, prompt_tokens=6, new_tokens=7),
            Throughput(),
            ModelCheckpoint(save_last=True),
            RunArtifacts({"model": {"x": 1}}, "tiny", ["a=1"], "abc"),
            max_steps=6,
            val_check_interval=3,
            num_sanity_val_steps=1,
        )
        trainer.fit(make_module(), datamodule=make_data(text))
    return trainer, shown.getvalue()


def _events(trainer: Trainer) -> EventAccumulator:
    events = EventAccumulator(str(trainer.log_dir), {"tensors": 0, "images": 0, "scalars": 0})
    return events.Reload()


def _texts(trainer: Trainer, tag: str) -> dict[int, str]:
    return {
        event.step: event.tensor_proto.string_val[0].decode()
        for event in _events(trainer).Tensors(f"{tag}/text_summary")
    }


# --- artifacts ---------------------------------------------------------------------------------------------


def test_checkpoint_stands_alone(run: tuple[Trainer, str], text: Path) -> None:
    trainer, data = run[0], make_data(text)
    assert isinstance(trainer.checkpoint_callback, ModelCheckpoint)
    loaded = load_checkpoint(trainer.checkpoint_callback.last_model_path)
    assert loaded.recipe == {"model": {"x": 1}}
    assert loaded.tokenizer_json == data.tokenizer_json
    assert loaded.model.config == make_config()
    assert loaded.metadata["recipe_name"] == "tiny"
    assert loaded.metadata["overrides"] == ["a=1"]
    assert loaded.metadata["git_commit"] == "abc"
    assert loaded.metadata["split_hashes"] == data.split_hashes
    assert (Path(str(trainer.log_dir)) / "tokenizer.json").read_text(encoding="utf-8") == data.tokenizer_json


def test_report(run: tuple[Trainer, str], text: Path) -> None:
    trainer = run[0]
    report = json.loads((Path(str(trainer.log_dir)) / "report.json").read_text(encoding="utf-8"))
    metrics = trainer.callback_metrics
    assert report["status"] == "finished"
    training = report["training"]
    assert training["exit_layers"] == [1, 2, 3]
    for name in ("perplexity", "accuracy", "agreement", "ece"):
        logged = [float(metrics[f"validation/{name}_exit_{layer}"]) for layer in (1, 2, 3)]
        assert training[f"{name}_per_exit"] == logged
    assert training["unigram_perplexity"] == make_data(text).unigram_perplexity()
    assert training["tokens_per_second"] > 0
    assert Path(report["artifacts"]["checkpoint"]).is_file()
    assert report["artifacts"]["tensorboard"] == trainer.log_dir
    for key in training:
        assert f"training.{key}" in report["sources"] or key in {"steps", "max_steps", "exit_layers"}


def test_a_failed_run_says_so_and_numbers_stay_json(tmp_path: Path, text: Path) -> None:
    class Fails(DepthQualityPlot):
        def on_validation_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.callback_metrics["validation/perplexity_exit_1"] = torch.tensor(float("inf"))
            raise ValueError("boom")

    trainer = make_trainer(tmp_path, Fails(), RunArtifacts())
    with pytest.raises(ValueError, match="boom"):
        trainer.fit(make_module(), datamodule=make_data(text))
    report = json.loads((Path(str(trainer.log_dir)) / "report.json").read_text(encoding="utf-8"))
    assert report["status"] == "failed"
    assert report["training"]["perplexity_per_exit"][1] is not None


def test_weights_only_checkpoints_are_refused(tmp_path: Path, text: Path) -> None:
    trainer = make_trainer(tmp_path, ModelCheckpoint(save_weights_only=True), RunArtifacts())
    with pytest.raises(UserError, match="save_weights_only"):
        trainer.fit(make_module(), datamodule=make_data(text))


def test_git_commit(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None

    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "one")
    commit = git_commit(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == f"{commit}-dirty"


# --- picture, samples, summary -----------------------------------------------------------------------------


def test_picture_after_every_validation(run: tuple[Trainer, str]) -> None:
    images = _events(run[0]).Images(TAG)
    assert [image.step for image in images] == [3, 6]
    assert images[0].width > images[0].height > 100


def test_picture_shows_the_curves() -> None:
    metrics = {
        "validation/perplexity_exit_10": 10.0,
        "validation/perplexity_exit_2": torch.tensor(90.0),
        "validation/ece_exit_2": 0.5,
        "validation/loss": 1.0,
        "train/loss_exit_2": 3.0,
    }
    curves = depth_curves(metrics)
    assert curves == {"perplexity": {2: 90.0, 10: 10.0}, "ece": {2: 0.5}}
    picture = draw(curves, "step 1")
    assert picture.shape[2] == 3
    assert picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
    moved = draw({**curves, "perplexity": {2: 90.0, 10: 50.0}}, "step 1")
    assert (picture != moved).any()
    draw({"perplexity": {1: float("inf"), 2: 3.0}}, "not finite")  # draws all the same


def _model(**settings: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(make_config(**settings)).eval()


@pytest.mark.parametrize("exit_index", [0, 2])
@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_greedy_is_the_argmax_of_a_growing_row(exit_index: int, positions: str) -> None:
    model = _model(positions=positions)
    prompts_PT = torch.randint(0, 300, (2, 5))
    expected_PT = prompts_PT
    for _ in range(9):
        logits_PV = model.logits(model(expected_PT)[exit_index][:, -1], exit_index)
        expected_PT = torch.cat([expected_PT, logits_PV.argmax(-1, keepdim=True)], dim=1)
    written_PT = greedy(model, prompts_PT, 9, exit_index=exit_index)
    assert torch.equal(written_PT, expected_PT[:, 5:])


def test_greedy_stops_at_the_learned_context() -> None:
    assert greedy(
        _model(positions="learned"), torch.zeros(1, 60, dtype=torch.long), 9, exit_index=2
    ).shape == (1, 4)


def test_samples_are_text_from_both_exits(run: tuple[Trainer, str], text: Path) -> None:
    trainer = run[0]
    written = _texts(trainer, "samples/prompt_1")
    assert sorted(written) == [3, 6]
    assert "**Prompt**" in written[6]
    assert "**After 1 layers**" in written[6]
    assert "**After 3 layers**" in written[6]
    data = make_data(text)
    start = next(d for d in list(data.documents("validation"))[1:] if len(d) > 6)[:6]
    assert data.tokenizer.decode(start.tolist()) in written[6]


def test_samples_refuse_an_exit_that_is_not_there(tmp_path: Path, text: Path) -> None:
    trainer = make_trainer(tmp_path, SampleGenerations(early_exit=5))
    with pytest.raises(UserError, match=r"early_exit is 5; expected one of the exits \[1, 2, 3\]"):
        trainer.fit(make_module(), datamodule=make_data(text))


def test_summary_names_what_runs(run: tuple[Trainer, str]) -> None:
    (line,) = _texts(run[0], "run/summary").values()
    assert "exits after 1, 2 and 3 layers" in line
    assert "attention sdpa (" in line
    assert "CPU, 32-true" in line


def test_without_tensorboard_it_is_said(tmp_path: Path, text: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    callbacks = (DepthQualityPlot(), SampleGenerations(prompt_tokens=4, new_tokens=2), RunSummary())
    trainer = make_trainer(tmp_path, *callbacks, max_steps=1, logger=False, limit_val_batches=0)
    trainer.fit(make_module(make_config(exits=ExitConfig())), datamodule=make_data(text))
    assert "Quality-against-depth plot: off" in caplog.text
    assert "Sample generations: off" in caplog.text
    assert "3 layers, no early exit" in caplog.text


# --- progress ----------------------------------------------------------------------------------------------


def test_progress_lines(run: tuple[Trainer, str]) -> None:
    lines = run[1].splitlines()
    steps = [line for line in lines if line.startswith("step ") and "/6" in line]
    assert len(steps) == 6  # seconds=0: at every step
    assert "loss 5." in steps[0]
    assert "(1: 5." in steps[0]
    assert "3: 5." in steps[0]
    assert "tokens/s" in steps[-1]
    assert "left" in steps[1]
    assert [line for line in lines if line.startswith("step 6  validation perplexity 1: ")]


def test_progress_does_not_flood(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(tmp_path, RunProgress(seconds=1000), max_steps=6)
    trainer.fit(make_module(), datamodule=make_data(text))
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("step", "valid"))]
    assert len(shown) == 1  # the validation's


def test_progress_bars_on_a_terminal(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    trainer = make_trainer(tmp_path, RunProgress(refresh=1000), max_steps=4, val_check_interval=2)
    trainer.fit(make_module(), datamodule=make_data(text))
    shown = terminal.getvalue()
    assert "4/4" in shown
    assert "Validating" in shown
    assert "loss 5." in shown
    assert "step 2  validation perplexity" in shown


# --- a classifier ------------------------------------------------------------------------------------------


def test_every_report_of_a_classifier(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{line},{'long' if len(line) > 80 else 'short'}" for line in text.read_text().splitlines()]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]))
    tokenizer = TokenizerConfig(vocab_size=280)
    data = ClassificationData(
        *(str(tmp_path / "rows.csv"), tokenizer), context=32, batch_size=8, cache_dir=str(tmp_path / "cache")
    )
    reports = (RunProgress(seconds=0), RunSummary(), DepthQualityPlot(), SampleGenerations(), Throughput())
    trainer = make_trainer(tmp_path, *reports, RunArtifacts(), EMA(0.9), max_steps=4)
    trainer.fit(LitClassifier(make_config(labels=2, causal=False)), datamodule=data)
    shown = capsys.readouterr()
    assert "Sample generations: off, this model does not write text" in shown.out
    assert "step 4  validation accuracy 1: " in shown.err
    report = json.loads((Path(str(trainer.log_dir)) / "report.json").read_text(encoding="utf-8"))
    assert len(report["training"]["accuracy_per_exit"]) == 3
    assert "perplexity_per_exit" not in report["training"]
    assert report["training"]["tokens_per_second"] > 0
    assert [image.step for image in _events(trainer).Images(TAG)] == [4]
