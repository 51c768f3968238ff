"""What every `lit-eff bench` of cells says of mistakes, and without a GPU."""

from __future__ import annotations

import pytest

from lit_eff.cli.main import main


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        (
            "attention",
            ["--cells", "dim 65"],
            "--cells 'dim 65' is in no cell's name; the cells: dim 64, 1024, full;",
        ),
        ("attention", ["--only", "trainin"], "invalid choice: 'trainin'"),
        ("attention", ["--rounds", "2"], "--rounds 2: a median and its noise take at least 3"),
        ("attention", ["--rounds", "many"], "invalid int value: 'many'"),
        ("attention", ["--jobs", "0"], "--jobs 0 must be at least 1"),
        ("attention", ["--ouput", "x"], "unknown option '--ouput'; did you mean '--output'"),
        ("attention", ["--output", "x.png"], "the plot goes beside them"),
        ("attention", ["--compare", "absent.jsonl"], "cannot read absent.jsonl"),
        ("attention", ["--check", "--cells", "no such"], "is in no check's name"),
        ("head", ["--only", "los"], "invalid choice: 'los'"),
        (
            "head",
            ["--cells", "2 exits", "13"],
            "--cells '13' is in no cell's name; the cells: 1 exit; 3 exits;",
        ),
        ("head", ["--check", "--cells", "no such"], "is in no check's name"),
        ("decode_step", ["--only", "steps"], "invalid choice: 'steps'"),
        (
            "decode_step",
            ["--cells", "1.1B", "7B"],
            "--cells '7B' is in no cell's name; the cells: 1.1B, batch 1;",
        ),
        ("decode_step", ["--check", "--cells", "no such"], "is in no check's name"),
    ],
)
def test_mistakes_are_one_line(
    name: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", name, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("name", ["attention", "head", "decode_step"])
def test_without_a_gpu_it_says_so(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", name]) == 2
    error = capsys.readouterr().err
    assert "needs an NVIDIA GPU and none is visible to torch; --check works without one" in error
