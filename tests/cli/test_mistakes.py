"""A mistake is one line on standard error that names the nearest key, exit code 2, and nothing written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lit_eff.cli.main import main

RECIPE = [
    # groups, callbacks and sections, on Hydra's side
    (["optimizer=adamv"], "no choice 'adamv' in group 'optimizer'; did you mean 'adamw'?"),
    (["trainer.max_step=3"], "unknown setting 'trainer.max_step'; did you mean 'trainer.max_steps'"),
    (["calibration.delt=0.2"], "unknown setting 'calibration.delt'; did you mean 'calibration.delta'"),
    (["calibratoin.delta=0.2"], "unknown setting 'calibratoin.delta'; did you mean 'calibration.delta'"),
    (["calibration.measure=hidden_saturatio"], "got 'hidden_saturatio'; did you mean 'hidden_saturation'?"),
    (["calibration.thresholds=[0.9,few]"], "calibration.thresholds: expected float or tuple"),
    (["export.format=onnx"], "unknown setting 'export.format'; did you mean 'export.formats'?"),
    (["serve.prot=1"], "unknown setting 'serve.prot'; did you mean 'serve.port'"),
    (["exits.layer=[1]"], "exits.layer' in model; did you mean 'layers'?"),
    (["seed_everythin=1"], "unknown setting 'seed_everythin'; did you mean 'seed_everything'?"),
    # inside classes, deep in dataclasses
    (["model.init_args.config.layer=3"], "unknown setting 'config.layer' in model; did you mean 'layers'?"),
    (
        ["model.init_args.exit_loss.curriculum.evry=3"],
        "'exit_loss.curriculum.evry' in model; did you mean 'every'?",
    ),
    (
        ["model.init_args.exit_loss.curriculm.every=3"],
        "'exit_loss.curriculm.every' in model; did you mean 'curriculum'?",
    ),
    (["data.init_args.contex=3"], "unknown setting 'contex' in data; did you mean 'context'?"),
    (["data.init_args.tokenizer.vocabsize=3"], "'tokenizer.vocabsize' in data; did you mean 'vocab_size'?"),
    (["trainer.callbacks.samples.init_args.promts=1"], "in trainer.callbacks; did you mean 'prompts'"),
    # the same on jsonargparse's side
    (["--trainer.max_step", "3"], "unknown setting 'trainer.max_step'; did you mean 'trainer.max_steps'"),
    (["--model.init_args.config.layer", "3"], "did you mean 'layers'?"),
    (["--data.contex", "3"], "did you mean 'context'?"),
    (["--exits.layer", "[1]"], "unknown setting 'exits.layer'; did you mean 'exits.layers'"),
    (["--ckptpath", "x"], "did you mean 'ckpt_path'"),
    # values
    (["trainer.max_steps=three"], "trainer.max_steps: expected int, got 'three'"),
    (
        ["model.init_args.config.norm=rsm"],
        "model.config.norm: expected one of 'rms', 'layer', got 'rsm'; did",
    ),
    (
        ["exits.head=sharde"],
        "exits.head: expected one of 'shared', 'norm', 'linear', 'mlp', got 'sharde'; did",
    ),
    (["exits.layers=[9]"], "exits.layers is [9]; expected increasing counts from 1 to 7"),
    (["seed_everything=x"], "seed_everything: expected bool or int, got 'x'"),
    (["model.class_path=lit_eff.training.LitLanguageModl"], "did you mean 'LitLanguageModel'"),
    (["model.class_path=lit_eff.trainin.LitLanguageModel"], "did you mean 'training'?"),
    (["model.init_args.optimizer.class_path=torch.optim.AdamV"], "torch.optim has no class 'AdamV'; did you"),
    (["exits.layers=[2"], "recipe quickstart.yaml does not compose"),
    (["~data.init_args.source"], "data.source is not set, and has no default"),
    (["trainer=gpu"], "`CUDAAccelerator` can not run on your system"),
    (["--ckpt_path", "none.ckpt"], "no checkpoint at none.ckpt; check --ckpt_path"),
]


def one_line(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Standard error of a command that must refuse ``argv``."""
    assert main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lit-eff: error: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    return captured.err


@pytest.mark.parametrize(("arguments", "expected"), RECIPE, ids=lambda value: str(value)[:60])
def test_in_a_recipe(
    tiny: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    import torch

    if torch.cuda.is_available() and "gpu" in arguments[0]:
        pytest.skip("this machine has a GPU")
    assert expected in one_line(capsys, "fit", *tiny, *arguments)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["fitt"], "unknown command 'fitt'; did you mean 'fit'?"),
        (["fit", "--config", "quickstrat"], "no recipe 'quickstrat'"),
        (["fit", "--config", "quickstrat"], "did you mean 'quickstart'?"),
        (["fit", "--config", "."], "--config . is a folder; expected a YAML file"),
        (["fit", "--config"], "--config needs a value"),
        (["fit"], "no recipe: pass --config"),
        (["fit", "quickstart"], "did you mean --config quickstart?"),
        (["fit", "--cofnig", "quickstart"], "unknown option '--cofnig'; did you mean '--config'?"),
        (
            ["fit", "--config", "gpt2_small"],
            "leaves data.init_args.source to you: add data.init_args.source=",
        ),
        (["fit", "--config", "layerskip"], "leaves model.init_args.init_from to you"),
        (["fit", "--config", "exit_tuning"], "leaves vars.init_from to you: add vars.init_from=VALUE"),
        (["validate", "--ckpt_path", "none.ckpt"], "no checkpoint at none.ckpt"),
        (["calibrate", "--ckpt", "c"], "unknown option '--ckpt'; did you mean '--ckpt_path'?"),
        (["calibrate"], "required: --ckpt_path; see lit-eff calibrate --help"),
        (["export", "--ckpt_path", "c", "--formt", "onnx"], "'--formt'; did you mean '--format'?"),
        (["export", "--ckpt_path", "none.ckpt"], "no checkpoint at none.ckpt"),
        (["generate", "--bundl", "b"], "unknown option '--bundl'; did you mean '--bundle'?"),
        (["serve", "--bundle", "b", "--prot", "1"], "unknown option '--prot'; did you mean '--port'"),
        (["serve", "--bundle", "b"], "b is not a bundle"),
        (["serve", "b"], "required: --bundle"),
        (["profile"], "no recipe: pass --config"),
        (["profile", "--config", "quickstart", "--jso"], "'--jso'; did you mean '--json'?"),
        (
            ["profile", "--config", "quickstart", "profile.attention.count_lenth=3"],
            "did you mean 'profile.attention.count_length'",
        ),
        (["quickstart", "--conf", "x"], "unknown option '--conf'; did you mean '--config'?"),
        (["doctor", "--jsn"], "unknown option '--jsn'; did you mean '--json'?"),
        (["doctor", "torch"], "unexpected 'torch'; see lit-eff doctor --help"),
        (["recipes", "gpt2_smal"], "no recipe 'gpt2_smal'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_in_a_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in one_line(capsys, *argv)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_truncated_checkpoint(tiny: list[str], capsys: pytest.CaptureFixture[str], command: str) -> None:
    Path("cut.ckpt").write_bytes(b"PK\x03\x04" + bytes(100))
    line = one_line(capsys, command, *tiny, "--ckpt_path", "cut.ckpt")
    assert "cut.ckpt cannot be read: truncated, or not a PyTorch checkpoint" in line


def test_an_unset_key_may_be_set_on_either_side(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Both get past the recipe to the data, which then finds no such file."""
    for arguments in (["data.init_args.source=none.txt"], ["--data.source", "none.txt"]):
        line = one_line(capsys, "fit", "--config", "gpt2_small", "trainer=cpu", *arguments)
        assert "no file or folder 'none.txt'" in line


@pytest.mark.parametrize(
    ("module", "extra", "argv"),
    [
        ("lightning", "train", ["fit", "--config", "quickstart"]),
        ("scipy", "train", ["calibrate", "--ckpt_path", "c"]),
        ("torch", "train", ["export", "--ckpt_path", "c"]),
        ("onnx", "train", ["export", "--ckpt_path", "c"]),
        ("hydra", "train", ["profile", "--config", "quickstart"]),
        ("datasets", "hf", ["fit", "--config", "gpt2_small", "trainer=cpu", "--data.source", "hf:name"]),
    ],
)
def test_a_missing_extra_is_named(module: str, extra: str, argv: list[str], tmp_path: Path) -> None:
    """In a process where the library cannot be imported, as when it is not installed."""
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from lit_eff.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert re.search(rf"{module}\b.*; run: pip install 'lit_eff\[{extra}\]'$", done.stderr.rstrip())
