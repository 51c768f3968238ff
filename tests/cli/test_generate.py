"""``lit-eff generate`` and the errors of ``serve``, over a scripted engine in place of a bundle."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from lit_eff.cli import generate, serve
from lit_eff.cli.main import main
from lit_eff.errors import UserError
from lit_eff.runtime.decode import Round
from lit_eff.runtime.decoding_config import DecodingConfig
from lit_eff.runtime.exit_rule import ExitRule
from lit_eff.runtime.text import TextEngine
from tests.runtime.fakes import scripted_engine

TEXT = "a naïve café\nand 日本語"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> TextEngine:
    engine = scripted_engine(TEXT, prompt="Say: ", uncertified=ExitRule(thresholds=(0.9, 0.9)))
    monkeypatch.setattr(TextEngine, "open", lambda *args, **settings: engine)
    return engine


def run(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[str, str]:
    assert generate.main(["--bundle", "b", "--prompt", "Say: ", *options]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


@pytest.mark.parametrize("mode", ["autoregressive", "lossless"])
def test_the_text_alone_is_on_standard_output(engine: TextEngine, capsys: Any, mode: str) -> None:
    out, err = run(capsys, "--mode", mode)
    assert out == TEXT + "\n"
    assert f"[{mode}]" in err
    assert "tokens/s" in err
    assert ("drafts accepted" in err) == (mode == "lossless")


def test_json_has_text_and_figures(engine: TextEngine, capsys: Any) -> None:
    out, _ = run(
        capsys, "--mode", "lossless", "--draft-exit", "2", "--draft-length", "3", "--json", "--compare"
    )
    report = json.loads(out)
    assert report["text"] == TEXT
    assert report["finish_reason"] == "stop"
    assert (report["draft_exit"], report["draft_length"]) == (2, 3)
    assert 0 < report["acceptance"] < 1
    assert report["accepted"] + report["rounds"] - 1 == report["completion_tokens"]  # the stop was drafted
    assert report["autoregressive"]["identical"] is True
    assert report["autoregressive"]["speedup"] > 0
    out, _ = run(capsys, "--mode", "certified", "--json")
    report = json.loads(out)
    assert report["exits"].keys() == {"1"}
    assert report["layers_per_token"] == 1
    assert "Uncertified" in report["promise"]


def test_options_reach_the_request_and_the_bundle_fills_the_rest(engine: TextEngine, capsys: Any) -> None:
    engine.decoding = DecodingConfig(mode="lossless", max_tokens=5, temperature=0.0, seed=3)
    report = json.loads(run(capsys, "--json")[0])
    assert (report["mode"], report["completion_tokens"]) == ("lossless", 5)
    report = json.loads(run(capsys, "--json", "--mode", "autoregressive", "--max-tokens", "3")[0])
    assert (report["mode"], report["completion_tokens"]) == ("autoregressive", 3)
    hot = [run(capsys, "--json", "--temperature", "50", "--max-tokens", "9")[0] for _ in range(2)]
    assert json.loads(hot[0])["text"] == json.loads(hot[1])["text"] != TEXT
    cut = json.loads(run(capsys, "--json", "--max-tokens", "99", "--stop", "café", "--stop", "ve")[0])
    assert cut["text"] == "a naï"


def test_trace_prints_each_round_then_the_text(engine: TextEngine, capsys: Any) -> None:
    out, _ = run(capsys, "--mode", "lossless", "--draft-length", "3", "--trace")
    assert out.endswith(TEXT + "\n")
    rounds = out.removesuffix(TEXT + "\n").splitlines()
    assert all("drafts" in line and " ms " in line for line in rounds)
    assert any("⏎" in line for line in rounds)  # a round is one line
    out, _ = run(capsys, "--mode", "certified", "--trace")
    assert "layer  1 of 3" in out


def test_trace_colours(engine: TextEngine) -> None:
    words = {token: engine.tokenizer.decode([token]) for token in (70, 71, 72)}
    assert len(set(words.values())) == 3
    one = Round((70, 71), (70, 72), 1, None, 1, 1, 0.001, None)
    styles = {
        span.style: generate.trace_line(engine, 1, one).plain[span.start : span.end]
        for span in generate.trace_line(engine, 1, one).spans
    }
    assert styles["green"] == words[70]
    assert styles["red strike"] == words[72]
    assert styles["bold blue"] == words[71]
    terminal = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=200)
    terminal.print(generate.trace_line(engine, 1, one))
    assert "\x1b[32m" + words[70] in terminal.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--temperture", "1"], "did you mean '--temperature'"),
        (["--max-tokens", "few"], "invalid int value: 'few'"),
        (["--mode", "quick"], "invalid choice: 'quick'"),
        (["--draft-exit", "x"], "--draft-exit"),
        (["--top-p", "7"], "top_p is 7.0"),
        (["--mode", "lossless", "--draft-exit", "3"], "after layer 3"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(
    engine: TextEngine, capsys: Any, options: list[str], named: str
) -> None:
    assert main(["generate", "--bundle", "b", "--prompt", "Say: ", *options]) == 2
    err = capsys.readouterr().err
    assert named in err
    assert err.count("\n") == 1


def test_a_missing_bundle_is_named(tmp_path: Any, capsys: Any) -> None:
    for command in (["generate", "--prompt", "x"], ["serve", "--port", "0"]):
        assert main([*command, "--bundle", str(tmp_path / "none")]) == 2
        assert "none is not a bundle" in capsys.readouterr().err.replace("\n", "")


def test_serve_refuses_bad_options() -> None:
    with pytest.raises(UserError, match="port is 99999"):
        serve.main(["--bundle", "b", "--port", "99999"])
    with pytest.raises(UserError, match="did you mean '--max-active'"):
        serve.main(["--bundle", "b", "--max-activ", "1"])
