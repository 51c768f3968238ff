"""``lit-eff fit`` with overrides on both sides, what its run folder holds, and what reproduces it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_eff.cli.lightning import lightning_cli, recipe_of, split_arguments
from lit_eff.cli.main import main
from lit_eff.models.checkpoint import load_checkpoint
from tests.cli.tiny import quickstart


class Run(NamedTuple):
    """A finished ``lit-eff fit``, and the folder it ran in."""

    home: Path
    argv: list[str]

    @property
    def folder(self) -> Path:
        return self.home / "runs" / "quickstart" / "version_0"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def run(text: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Both sides set the steps and the learning rate; jsonargparse alone the exits and a data setting."""
    home = tmp_path_factory.mktemp("home")
    hydra = ["trainer.max_steps=90", "model.init_args.optimizer.init_args.lr=9"]
    jsonargparse = ["--trainer.max_steps", "6", "--model.optimizer.lr", "1e-3", "--exits.layers", "[1,3]"]
    argv = [*quickstart(text, cache), *hydra, *jsonargparse, "--data.validation_tokens=100"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["fit", *argv]) == 0
    return Run(home, argv)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every TensorBoard curve of a run."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def metrics(*argv: str) -> dict[str, float]:
    """What ``lit-eff validate`` computes."""
    config, overrides, rest = split_arguments(list(argv))
    cli = lightning_cli(recipe_of(config, overrides, rest), ["validate", *rest])
    return {name: float(value) for name, value in cli.trainer.callback_metrics.items()}


def test_overrides_work_on_both_sides_and_jsonargparse_wins(run: Run) -> None:
    curves = scalars(run.folder)
    assert len(curves["train/loss"]) == 6
    assert max(value for _, value in curves["train/lr"]) == pytest.approx(1e-3)
    model = load_checkpoint(run.checkpoint).model.config
    assert model.exits.layers == (1, 3)  # --exits.layers
    assert model.exits.head == "norm"  # the recipe's group
    assert model.model_dim == 16  # Hydra's a.b=1
    assert {"train/loss_exit_1", "train/loss_exit_3", "train/loss_exit_8"} <= set(curves)


def test_the_saved_configuration_is_whole_and_says_where_it_comes_from(run: Run) -> None:
    text = (run.folder / "config.yaml").read_text(encoding="utf-8")
    assert text.startswith("# recipe: quickstart\n# overrides: data.init_args.source=")
    assert "--exits.layers" in text.splitlines()[1]
    config = yaml.safe_load(text)
    assert not {"defaults", "vars", "hydra", "config", "ckpt_path"} & set(config)
    assert config["exits"] == {"layers": [1, 3], "head": "norm", "classifier": False}
    assert config["trainer"]["max_steps"] == 6
    assert config["serve"]["port"] == 8000  # sections that the recipe leaves out are spelled out
    assert "exits" not in config["model"]["init_args"]["config"]  # said once, in its section


def test_the_checkpoint_holds_the_same_job(run: Run) -> None:
    loaded = load_checkpoint(run.checkpoint)
    assert loaded.recipe == yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    assert loaded.metadata["recipe_name"] == "quickstart"
    assert "--trainer.max_steps" in loaded.metadata["overrides"]
    assert "trainer.max_steps=90" in loaded.metadata["overrides"]


def test_the_saved_configuration_replays_to_the_bit(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(run.folder / "config.yaml")]) == 0
    again = tmp_path / "runs" / "quickstart" / "version_0"
    timing = ("train/tokens_per_second", "train/mfu")
    first, second = (
        {tag: curve for tag, curve in scalars(folder).items() if tag not in timing}
        for folder in (run.folder, again)
    )
    assert len(first["train/loss"]) == 6
    assert first == second

    def settings(folder: Path) -> Any:
        return yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))

    assert settings(again) == settings(run.folder)


@pytest.mark.parametrize("source", ["checkpoint", "recipe", "saved"])
def test_validate_reproduces_the_logged_metrics(
    run: Run,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {
        "checkpoint": [],
        "recipe": run.argv,
        "saved": ["--config", str(run.folder / "config.yaml")],
    }[source]
    found = metrics(*recipe, "--ckpt_path", str(run.checkpoint))
    last = {tag: curve[-1] for tag, curve in scalars(run.folder).items() if tag.startswith("validation/")}
    assert {step for step, _ in last.values()} == {5}  # the sixth: Lightning counts from 0
    assert {"validation/loss", "validation/perplexity_exit_8", "validation/agreement_exit_1"} <= set(last)
    assert found == {tag: value for tag, (_, value) in last.items()}
    assert "validation/loss" in capsys.readouterr().out  # and prints them
    assert list(tmp_path.iterdir()) == []  # an evaluation leaves no run behind


def test_predict_writes_every_exits_predictions(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.home)
    assert main(["predict", "--ckpt_path", str(run.checkpoint)]) == 0
    with np.load(run.checkpoint.parent / "predictions.npz") as found:
        assert found["exit_layers"].tolist()[:2] == [1, 3]
        exits, tokens = found["prediction_EN"].shape
        assert (exits, tokens) == found["nll_EN"].shape == found["confidence_EN"].shape
        assert exits == len(found["exit_layers"])
        assert 0 < found["confidence_EN"].min() <= found["confidence_EN"].max() <= 1


def test_a_run_resumes_from_its_checkpoint_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--ckpt_path", str(run.checkpoint), "trainer.max_steps=8"]) == 0
    curves = scalars(tmp_path / "runs" / "quickstart" / "version_0")
    assert [step for step, _ in curves["train/loss"]] == [6, 7]


def test_callbacks_are_removable_by_name(tiny: list[str]) -> None:
    def names(*words: str) -> list[str]:
        config, overrides, rest = split_arguments([*tiny, *words])
        trainer = lightning_cli(recipe_of(config, overrides, rest), [], run=False).trainer
        return [type(callback).__name__ for callback in trainer.callbacks]

    everything = names()
    assert {"SampleGenerations", "DepthQualityPlot"} <= set(everything)
    fewer = names("trainer.callbacks.samples=null", "~trainer.callbacks.depth_plot")
    assert set(everything) - set(fewer) == {"SampleGenerations", "DepthQualityPlot"}
    averaged = names("+trainer.callbacks.ema.class_path=lit_eff.training.callbacks.EMA")
    assert set(averaged) - set(everything) == {"EMA"}


def test_the_terminal_shows_the_run_and_no_chores(tiny: list[str]) -> None:
    """In a process of its own, as a user sees it."""
    command = [sys.executable, "-m", "lit_eff.cli.main", "fit", *tiny]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    expected = ("Data: ", "0.03M parameters, ", "train/mfu: unavailable, ", "step 2  ", "step 4  ")
    lines = [line for line in done.stderr.splitlines() if "━" not in line]  # the data's bars, if it is built
    assert len(lines) == len(expected), done.stderr
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True)), done.stderr


def test_warnings_that_matter_are_shown(tiny: list[str]) -> None:
    config, overrides, rest = split_arguments([*tiny, "trainer.precision=16-mixed"])
    recipe = recipe_of(config, overrides, rest)
    with pytest.warns(UserWarning, match="AMP with fp16 is not supported on CPU"):
        lightning_cli(recipe, [], run=False)


@pytest.mark.distributed
def test_two_processes_make_one_run(tiny: list[str]) -> None:
    """Lightning starts the second process with this command line."""
    sharded = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    fewer = ["trainer.callbacks.samples=null", "model.init_args.config.layers=4", "exits.layers=[2]"]
    command = [sys.executable, "-m", "lit_eff.cli.main", "fit", *tiny, *sharded, *fewer]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 x CPU" in done.stderr
    (run,) = Path("runs/quickstart").iterdir()
    assert (run / "config.yaml").is_file()
    assert len(list((run / "checkpoints" / "last.ckpt").glob("*.distcp"))) == 2  # a slice a process
