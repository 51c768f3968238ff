"""``lit-eff calibrate --update``: from a server's log to a bundle with a new certificate, or no change."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_eff.cli.main import main
from lit_eff.runtime.bundle import open_bundle
from lit_eff.runtime.claim import sentence
from lit_eff.runtime.text import TextEngine
from tests.export.bundles import readable_bundle, readable_checkpoint
from tests.runtime.test_certificate import candidate
from tests.serving.test_app import client_of

GRID = tuple(candidate(threshold, 0.1, 0.001) for threshold in (0.9, 0.05, 0.01, 0.0))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose certificate is too bold for its traffic, and the log of that traffic."""
    folder = tmp_path_factory.mktemp("update")
    bundle = readable_bundle(folder / "bundle", ("onnx", "torch"), candidates=GRID, selected=3)
    rng = np.random.default_rng(0)

    async def serve() -> None:
        engine = TextEngine.open(bundle, threads=1)
        async with client_of(engine, traffic_log=str(folder / "log.jsonl"), shadow_share=0.0) as client:
            prompts = ["".join(rng.choice(list("abcdefgh"), rng.integers(1, 9))) for _ in range(60)]
            body = {"max_tokens": 1, "temperature": 0, "mode": "certified"}
            for prompt in prompts:
                assert (
                    await client.post("/v1/completions", json={**body, "prompt": prompt})
                ).status_code == 200

    asyncio.run(serve())
    return folder


def test_a_log_replaces_the_certificate(
    served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["calibrate", "--update", str(served / "bundle"), "--log", str(served / "log.jsonl")]
    before = snapshot(served)
    assert main([*words, "--output", str(tmp_path / "new"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert snapshot(served) == before
    new, old = open_bundle(tmp_path / "new").certificate, open_bundle(served / "bundle").certificate
    assert new is not None
    assert old is not None
    assert printed["before"] == sentence(old)
    assert printed["selected"] == new.selected
    assert old.thresholds == (0.0, 0.0)
    assert new.selected is not None
    assert new.selected < 3
    assert new.test.risk < old.delta
    files = [set(open_bundle(path).manifest.files.items()) for path in (tmp_path / "new", served / "bundle")]
    assert {name for name, _ in files[0] ^ files[1]} == {"exits.json"}

    verify = ["verify", "--data", str(served / "log.jsonl"), "--threads", "1"]
    assert main([*verify, "--bundle", str(served / "bundle")]) == 1
    assert main([*verify, "--bundle", str(tmp_path / "new")]) == 0

    assert main([*words[:2], str(tmp_path / "new"), *words[3:]]) == 0  # in place
    assert "holds the new certificate" in capsys.readouterr().out
    assert open_bundle(tmp_path / "new").certificate == new


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sequences", "3"], "3 calibrate and"),
        (["--sequences", "0"], "--sequences is 0"),
        (["--log", "missing.jsonl"], "cannot read missing.jsonl"),
        (["--lgo", "x"], "did you mean '--log'"),
        (["--config", "quickstart"], "unknown option '--config'"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    served: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    before = snapshot(served)
    start = ["calibrate", f"--update={served / 'bundle'}", "--log", str(served / "log.jsonl")]
    assert main([*start, *words]) == 2
    assert message in capsys.readouterr().err
    assert snapshot(served) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failure_leaves_the_old_bundle(served: Path, monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
    before = snapshot(served / "bundle")

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("lit_eff.runtime.manifest.Manifest.save", fail)  # all else is written by then
    words = ["calibrate", "--update", str(served / "bundle"), "--log", str(served / "log.jsonl")]
    if error is KeyboardInterrupt:
        assert main(words) == 130
    else:
        with pytest.raises(OSError, match="No space"):
            main(words)
    assert snapshot(served / "bundle") == before
    shutil.rmtree(served / "bundle.partial")  # what was generated is kept


def test_a_bundle_without_weights_or_certificate_says_so(
    served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lit_eff.export.config import ExportConfig
    from lit_eff.export.job import export_bundle

    log = ["--log", str(served / "log.jsonl")]
    readable_bundle(tmp_path / "onnx")
    assert main(["calibrate", "--update", str(tmp_path / "onnx"), *log]) == 2
    assert "export it again with --format torch" in capsys.readouterr().err
    bare = export_bundle(readable_checkpoint(), tmp_path / "bare", None, ExportConfig(("torch",)))
    assert main(["calibrate", "--update", str(bare), *log]) == 2
    assert "no certificate to update" in capsys.readouterr().err
