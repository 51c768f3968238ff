"""``lit-eff profile``: every packaged profile recipe, shrunk, end to end; plans; what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_eff.cli.compose import packaged_recipes
from lit_eff.cli.main import main
from lit_eff.profiling.report import load_report
from lit_eff.profiling.tensorboard import with_baseline
from tests.cli.tiny import CONTEXT, VOCABULARY, model_overrides

SIZES = [*model_overrides(), f"vars.vocab_size={VOCABULARY}", f"vars.context={CONTEXT}"]
WORDS = {
    "profile_attention": [
        "profile.attention.lengths=[64,128]",
        "profile.attention.batch=2",
        "profile.attention.count_length=32",
        "profile.attention.count_heads=1",
        "profile.attention.speed_results=none",
    ],
    "profile_kernels": ["profile.kernels.operations=[swiglu,norm]"],
    "profile_decoding": [*SIZES, "profile.decoding.tokens=6"],
    "profile_serving": [*SIZES, "profile.serving.requests=3", "profile.serving.tokens=5"],
}
TABLES = {
    "profile_attention": "Figure 2: attention's bytes and time",
    "profile_kernels": "SRAM, registers and occupancy",
    "profile_training": "A training step by module",
    "profile_decoding": "What leaving early saves",
    "profile_serving": "Requests to the server",
}


@pytest.mark.parametrize("recipe", [name for name in packaged_recipes() if name.startswith("profile_")])
def test_a_profile_recipe_runs(
    recipe: str, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = WORDS.get(recipe)
    if words is None:  # it trains
        words = [*tiny[2:], f"name={recipe}", "profile.training.steps=1"]
    assert main(["profile", "--config", recipe, *words, "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    folder = Path(report["folder"])
    assert folder.parent.name == recipe
    assert TABLES[recipe] in [table["title"] for table in report["tables"]]
    names = {Path(file).name for file in report["files"]}
    assert {"profile.json", "profile.html"} <= names
    assert all(Path(file).is_file() for file in report["files"])
    assert ("trace.perfetto.json.gz" in names) == (recipe not in ("profile_attention", "profile_kernels"))
    assert list(folder.glob("events.out.tfevents.*"))
    loaded = load_report(folder)
    assert loaded.environment["command"].startswith(f"lit-eff profile --config {recipe}")
    assert [record.kernel for record in loaded.records] == [record["kernel"] for record in report["records"]]
    counted = [record for record in loaded.records if record.get("read_bytes", "counted") is not None]
    assert bool(counted) == (recipe in ("profile_attention", "profile_kernels"))
    for record in counted:
        for each in with_baseline(record):
            assert each.counted_equals_modelled
            assert each.kernel in captured.err
    if counted:
        assert "equal to the byte" in captured.err
    for note in report["notes"]:
        assert note in captured.err
    if recipe == "profile_attention":  # what this machine lacks is said, and the rest delivered
        assert len(with_baseline(counted[-1])) == 5  # flash, standard attention and its three kernels
        assert report["notes"][0] == "time and measured bytes unavailable: no NVIDIA GPU that CUDA can use"
        assert "cannot read none" in report["notes"][1]


def test_a_plan_is_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    """LLaMA-65B on 2,048 A100 (Touvron et al. 2023): 1.4 T tokens took about 21 days."""
    words = ["--parameters", "65.2e9", "--tokens", "1.4e12", "--gpus", "2048", "--utilisation", "0.47"]
    words += ["--device", "A100 SXM 80 GB", "--price", "2"]
    assert main(["profile", "--plan", *words, "--json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)
    values = {row[0]: row[1] for row in table["rows"]}
    assert values["GPU-hours"] == pytest.approx(6 * 65.2e9 * 1.4e12 / (0.47 * 312e12) / 3600)
    assert 20 < values["hours"] / 24 < 22
    assert values["cost"] == pytest.approx(2 * values["GPU-hours"])
    assert values["carbon, tCO2e"] == pytest.approx(values["GPU-hours"] * 400 * 1.1 / 1e6 * 0.385)


def test_the_lectures_table_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--plan", "--parameters", "7e9", "--tokens", "1e12", "--lecture"]) == 0
    printed = capsys.readouterr().out
    for figure in ("LLaMA-65B", "449.8", "449", "BLOOM-175B", "476.5", "475"):
        assert figure in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "profile_attention", "profile.parts=[training]"], "has no model"),
        (["--config", "profile_attention", "profile.parts=[decoding]"], "profile.decoding.bundle is not set"),
        (["--config", "profile_decoding", "profile.decoding.bundle=nowhere"], "nowhere"),
        (["--config", "profile_kernels", "profile.kernels.operations=[norms]"], "did you mean 'norm'"),
        (["--plan", "--parameters", "7e9"], "--tokens"),
        (["--plan", "--parameters", "7e9", "--tokens", "1", "--device", "H10"], "no device 'H10'"),
        (["--plan", "--parameters", "7e9", "--tokens", "1", "--utilisation", "2"], "utilisation 2"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "runs").exists()
