"""``lit-eff verify``: the figures are those of decoding by hand, the exit code is the verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_eff.calibration.text_metrics import find_metric
from lit_eff.cli.main import main
from lit_eff.export.config import ExportConfig
from lit_eff.export.job import export_bundle
from lit_eff.models.config import ExitConfig
from lit_eff.runtime import decode
from lit_eff.runtime.audit import audit
from lit_eff.runtime.betting import RiskTest
from lit_eff.runtime.bundle import open_bundle, replace_certificate
from lit_eff.runtime.decode import GenerateRequest, generate
from lit_eff.runtime.prompts import certified_prompts, read_prompts
from lit_eff.runtime.sampling import draw
from tests.export.bundles import bold_certificate, readable_bundle, readable_checkpoint
from tests.export.models import loaded, tiny_model
from tests.runtime.fakes import byte_tokenizer

FAST = ["--threads", "1", "--prompts", "2", "--draws", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    readable_bundle(folder / "bundle")
    rng = np.random.default_rng(0)
    lines = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(80)]
    (folder / "text.txt").write_text("\n".join([*lines, "", "ab", lines[0]]) + "\n", encoding="utf-8")
    return folder


def with_certificate(folder: Path, name: str, **changes: Any) -> str:
    made = bold_certificate(readable_checkpoint(), **changes)
    return str(replace_certificate(open_bundle(folder / "bundle"), made, folder / name))


def report_of(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["verify", *words, *FAST, "--json"])
    return code, json.loads(capsys.readouterr().out)


def verify(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """The exit code and what was found of the certificate."""
    code, report = report_of(capsys, *words)
    found: dict[str, Any] = report["certificate"]
    return code, found


def test_every_figure_is_what_decoding_one_by_one_gives(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = with_certificate(folder, "half", thresholds=(0.005, 0.005), candidates=bold(0.005))
    code, report = verify(capsys, "--bundle", bundle, "--data", str(folder / "text.txt"))
    opened = open_bundle(bundle)
    runner, certificate = opened.runner(threads=1), opened.certificate
    assert certificate is not None
    prompts = {
        tuple(byte_tokenizer().encode(line).ids[:4])
        for line in (folder / "text.txt").read_text().split("\n")
        if len(byte_tokenizer().encode(line).ids) >= 4
    }
    losses, layers = [], []
    for prompt in prompts:
        both = [
            list(generate(runner, GenerateRequest(prompt, 5, mode, exit_rule=certificate.exit_rule())))  # type: ignore[arg-type]
            for mode in ("autoregressive", "certified")
        ]
        losses.append(np.mean([a.tokens != b.tokens for a, b in zip(*both, strict=True)]))
        layers += [one.layer_launches for one in both[1]]
    assert 0 < np.mean(losses) < 1
    assert 1 < np.mean(layers) < 3, "the case should be neither trivial outcome"
    assert report["sequences"] == len(prompts) <= 80
    assert report["risk"] == pytest.approx(np.mean(losses))
    assert report["layers_per_token"] == pytest.approx(np.mean(layers))
    low, high = report["interval"]
    assert low <= report["risk"] <= high
    assert code == (report["verdict"] == "refuted")
    assert report["test"]["risk"] == certificate.test.risk


def bold(threshold: float) -> Any:
    from tests.runtime.test_certificate import candidate

    return (candidate(threshold, 0.1, 0.001),)


def test_a_guarantee_that_does_not_hold_is_refuted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["verify", "--bundle", str(folder / "bundle"), "--data", str(folder / "text.txt")]
    assert main([*words, *FAST]) == 1
    out = capsys.readouterr().out
    assert "REFUTED: the risk is above the certificate's 0.25 (confidence 0.95)." in out
    assert "1.00 of 3; the certificate's test split: 5.12" in out


def test_confirmed_and_open(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(folder / "text.txt")]
    never = with_certificate(
        folder, "never", selected=None, candidates=(), thresholds=(None, None), delta=0.9
    )
    code, report = verify(capsys, "--bundle", never, *data)
    assert (code, report["verdict"], report["risk"]) == (0, "confirmed", 0.0)
    code, report = verify(capsys, "--bundle", str(folder / "bundle"), *data, "--sequences", "1")
    assert (code, report["verdict"], report["sequences"]) == (0, "open", 1)


def letters_lost(one: str, other: str) -> float:
    return float(len(set(one) ^ set(other)) > 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metric": "edit_distance"}, []),
        ({"metric": "chrf"}, []),
        ({"metric": f"{__name__}:letters_lost"}, ["--metric", f"{__name__}:letters_lost"]),
        ({"certifies": "risk_consistency", "metric": "exact_match", "continuation_length": 2}, []),
    ],
)
def test_any_risk_is_measured_again(
    folder: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: list[str]
) -> None:
    bundle = with_certificate(folder, "other", **changes)
    _, report = verify(capsys, "--bundle", bundle, "--data", str(folder / "text.txt"), *words)
    opened = open_bundle(bundle)
    runner, certificate = opened.runner(threads=1), opened.certificate
    assert certificate is not None
    steps = certificate.continuation_length
    metric = find_metric(certificate.metric, opened.tokenizer_json)
    of_reference = certificate.certifies == "risk_consistency"
    length = 4 + steps * of_reference
    lines = (folder / "text.txt").read_text().split("\n")
    rows = {tuple(byte_tokenizer().encode(line).ids[:length]) for line in lines}
    losses = []
    for row in (row for row in rows if len(row) == length):
        full, early = (
            [
                one.tokens[0]
                for one in generate(
                    runner,
                    GenerateRequest(row[:4], steps, mode, exit_rule=certificate.exit_rule()),  # type: ignore[arg-type]
                )
            ]
            for mode in ("autoregressive", "certified")
        )
        reference = row[4:]
        lost = metric(early, reference) - metric(full, reference) if of_reference else metric(early, full)
        losses.append(max(0.0, lost))
    assert report["sequences"] == len(losses)
    assert report["risk"] == pytest.approx(np.mean(losses))
    assert of_reference or 0 < report["risk"] <= 1


def test_a_bundles_function_runs_only_where_it_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = with_certificate(folder, "foreign", metric="builtins:len")
    words = ["verify", "--bundle", bundle, "--data", str(folder / "text.txt")]
    assert main(words) == 2
    assert "allow it with --metric builtins:len" in capsys.readouterr().err
    assert main([*words, "--metric", "my.code:loss"]) == 2
    error = capsys.readouterr().err
    assert "--metric is 'my.code:loss', and the certificate's metric is 'builtins:len'" in error


def test_a_log_of_tokens_and_whole_prompts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt_tokens": [5, 6]}, {"prompt_tokens": [5]}, {"text": "ab"}, {"prompt_tokens": [7] * 156}]
    log = folder / "log.jsonl"
    log.write_text("\n".join(json.dumps(row) for row in rows))
    whole = with_certificate(folder, "whole", prompt_length=None)
    _, report = verify(capsys, "--bundle", whole, "--data", str(log))
    assert report["sequences"] == 3  # the last leaves no room
    assert "logged prompt" in report["sentence"]


def test_the_verdict_is_the_tests(folder: Path) -> None:
    opened = open_bundle(folder / "bundle")
    assert opened.certificate is not None
    prompts = certified_prompts(
        read_prompts(folder / "text.txt", byte_tokenizer(), 300), length=4, longest=100
    )
    result = audit(opened.runner(threads=1), opened.certificate, prompts, alpha=0.05)
    test = RiskTest(0.25, 0.05)
    for prompt in prompts:
        one = audit(opened.runner(threads=1), opened.certificate, [prompt], alpha=0.05)
        test.update(one.risk)
    assert result.log_wealth == pytest.approx(test.log_wealth)
    assert test.alarm
    assert result.verdict == "refuted"


def without_certificate(tmp_path: Path, exits: tuple[int, ...] = (1, 2)) -> Path:
    tokenizer = byte_tokenizer()
    model = tiny_model(vocab_size=tokenizer.get_vocab_size(), layers=3, exits=ExitConfig(exits))
    checkpoint = loaded(model, tokenizer_json=tokenizer.to_str(), recipe={})
    return export_bundle(checkpoint, tmp_path / "bare", None, ExportConfig(("onnx",)))


def test_without_data_drafts_are_tried_on_prompts_of_its_own(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--bundle", str(folder / "bundle"), "--prompts", "6"]
    code, report = report_of(capsys, *words)
    assert (code, report["refuted"]) == (0, False)
    greedy, sampled = report["greedy_identity"], report["sampled_distribution"]
    assert greedy["prompts"] == 2  # FAST comes later
    assert greedy["runs"] == 2 * 2 * 3  # prompts, draft exits, draft lengths
    assert greedy["tokens"] == greedy["runs"] * 32
    assert greedy["prompts_from"] == sampled["prompts_from"] == "plain sentences, then random tokens"
    assert (greedy["verdict"], sampled["verdict"]) == ("identical", "consistent")
    assert sampled["sequences"] == 4
    assert "certificate" not in report
    assert "--data FILE" in report["not_verified"]["the certificate"]
    assert main(["verify", *words, *FAST]) == 0
    out = capsys.readouterr().out
    assert "Greedy identity: drafts change no token." in out
    assert "Not verified: the certificate (that takes prompts it was not made from" in out


def test_without_a_certificate_all_else_is_verified(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(without_certificate(tmp_path))
    code, report = report_of(capsys, "--bundle", bundle, "--data", str(folder / "text.txt"))
    assert code == 0
    assert report["greedy_identity"]["prompts_from"] == str(folder / "text.txt")
    assert report["sampled_distribution"]["verdict"] == "consistent"
    assert report["not_verified"].keys() == {"the certificate"}
    assert report["not_verified"]["the certificate"].startswith("the bundle has none")


def test_without_exits_there_is_nothing_to_draft_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = report_of(capsys, "--bundle", str(without_certificate(tmp_path, ())))
    assert code == 0
    assert report["not_verified"]["greedy identity and sampled distribution"] == (
        "the bundle has no early exit, so there is nothing to draft with"
    )
    assert "greedy_identity" not in report


def test_a_wrong_engine_is_refuted(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def always(targets: Any, drafts: Any) -> tuple[int, int]:
        return len(drafts), list(targets)[len(drafts)]

    monkeypatch.setattr(decode, "accept_greedy", always)
    words = ["--bundle", str(folder / "bundle")]
    code, report = report_of(capsys, *words)
    assert (code, report["refuted"]) == (1, True)
    assert report["greedy_identity"]["mismatches"][0].keys() == {
        *("prompt", "draft_layers", "draft_length", "position")
    }
    monkeypatch.undo()

    def kept(p_rows: Any, q_rows: Any, drafts: Any, rng: Any) -> tuple[int, int]:
        return len(drafts), draw(list(p_rows)[-1], rng)

    monkeypatch.setattr(decode, "accept_drafts", kept)
    assert main(["verify", *words, "--threads", "1", "--draws", "400"]) == 1
    out = capsys.readouterr().out
    assert "Greedy identity: drafts change no token." in out
    assert "Sampled distribution: REFUTED" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt_tokens": [1, 2', r"bad.jsonl:2: not valid JSON"),
        ('{"prompt_tokens": []}', "bad.jsonl:2: expected an object with prompt_tokens"),
        ('{"prompt_tokens": [1, true]}', "expected an object"),
        ('{"prompt_tokens": [1, 300]}', "token 300 is outside this model's vocabulary of 300"),
        ("[1, 2]", "expected an object"),
    ],
)
def test_bad_files_are_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "one two three"}\n' + content)
    words = ["--bundle", str(folder / "bundle"), "--data", str(tmp_path / "bad.jsonl")]
    assert main(["verify", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "a.txt", "--config", "quickstart"], "give either --data FILE"),
        (["--data", "a.csv"], "neither .txt"),
        (["--data", "missing.txt"], "cannot read missing.txt"),
        (["--data", "a.txt", "--alpha", "0"], "--alpha is 0"),
        (["--data", "a.txt", "--sequences", "0"], "--sequences is 0"),
        (["--prompts", "0"], "--prompts is 0"),
        (["--draws", "0"], "--draws is 0"),
    ],
)
def test_bad_words_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["verify", "--bundle", str(folder / "bundle"), *words]) == 2
    assert message in capsys.readouterr().err


def test_without_prompts_or_a_certificate(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.txt").write_text("a\n")
    assert main(["verify", "--bundle", str(folder / "bundle"), "--data", str(tmp_path / "short.txt")]) == 2
    assert "at least 4 tokens a prompt, and at most 155" in capsys.readouterr().err
    (folder / "bundle" / "exits.json").write_text("{}")
    assert main(["verify", "--bundle", str(folder / "bundle"), "--data", "a.txt"]) == 2
    assert "exits.json is truncated or altered" in capsys.readouterr().err
