"""A small `lit-eff quickstart`, end to end, and then every command of the README in the folder it left."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("  #")[0]
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
]
# Makes a fit of seconds out of one of minutes.
DATA = ["data.init_args.max_documents=1500", "data.init_args.validation_tokens=2048"]
SMALL = [*DATA, "trainer.max_steps=4", "trainer.val_check_interval=4", "model.init_args.config.model_dim=64"]
QUICK = ["calibration.sequences=40", "calibration.test_sequences=10", "decoding.max_tokens=20"]
QUICK += [
    "calibration.prompt_length=8",
    "data.init_args.splits={train: 0.7, validation: 0.1, calibration: 0.1, test: 0.1}",
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the quickstart ran: once for all test processes, each of which gets a copy."""
    shared, own = shared_folder(tmp_path_factory), tmp_path_factory.mktemp("quickstart") / "folder"
    with FileLock(shared / "lock"):
        if not (shared / "done").exists():
            run_quickstart(shared / "folder")
            (shared / "done").touch()
    shutil.copytree(shared / "folder", own)
    shutil.copytree(shared / "cache", own.parent / "cache")
    return own


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for all processes of a test run."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared_quickstart"
    shared.mkdir(exist_ok=True)
    return shared


def run_quickstart(folder: Path) -> None:
    folder.mkdir()
    reviews = [
        json.dumps({"text": f"Review {n}. " + "It was good and then it was bad. " * (n % 7 + 30)})
        for n in range(400)
    ]
    (folder / "reviews.jsonl").write_text("\n".join(reviews), encoding="utf-8")
    done = lit_eff(folder, "quickstart", *SMALL, *QUICK)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "stdout").write_text(done.stdout)


def lit_eff(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it, with a cache of its own."""
    command = [sys.executable, "-m", "lit_eff.cli.main", *words]
    return subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=300
    )


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(folder.parent / "cache")}


def test_quickstart_reports_every_promised_figure(folder: Path) -> None:
    report: dict[str, Any] = json.loads((folder / "runs/quickstart/report.json").read_text())
    training, calibration, decoding = report["training"], report["calibration"], report["decoding"]
    assert len(training["perplexity_per_exit"]) == len(training["exit_layers"]) == 3
    assert training["perplexity_per_exit"][-1] < training["untrained_perplexity"]
    assert training["unigram_perplexity"] > 1
    assert set(calibration) >= {"delta", "epsilon", "selected", "layers_per_token"}
    for mode in ("autoregressive", "certified", "lossless"):
        assert decoding[mode]["tokens_per_second"] > 0
    assert decoding["lossless"]["identical_to_autoregressive"] is True
    assert 0 <= decoding["lossless"]["acceptance"] <= 1
    for artifact in ("checkpoint", "bundle", "tensorboard", "trace"):
        assert (folder / report["artifacts"][artifact]).exists()
    assert report["profile"]["numbers"]["read_bytes"]
    assert report["sources"]


def test_quickstart_prints_where_things_are_and_how_to_serve(folder: Path) -> None:
    printed = (folder / "stdout").read_text()
    for word in (
        "perplexity",
        "autoregressive",
        "certified",
        "lossless",
        "tensorboard --logdir",
        "lit-eff serve",
    ):
        assert word in printed


def runnable() -> list[str]:
    return [line for line in COMMANDS if line.startswith("lit-eff") and " serve " not in line]


@pytest.mark.parametrize("line", runnable())
def test_readme_command_runs(folder: Path, line: str) -> None:
    words = shlex.split(line)[1:]
    if words[0] in ("fit", "profile"):
        words += [word for word in SMALL if "data=text_files" not in line or not word.startswith("data.")]
    if words[0] == "fit":
        words += ["name=readme"]  # the later lines read the quickstart's own run
    if words[0] == "calibrate":
        words += ["--output", "exits.json"]
    if words[0] == "export":
        words += ["--output", "bundle"]
    done = lit_eff(folder, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout + done.stderr


def test_readme_serve_answers(folder: Path) -> None:
    (line,) = (line for line in COMMANDS if " serve " in line)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lit_eff.cli.main", *shlex.split(line)[1:], "--port", str(port)]
    server = subprocess.Popen(command, cwd=folder, env=environment(folder))
    try:
        body = json.dumps({"model": "bundle", "prompt": "This movie", "max_tokens": 4}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    answer = json.load(response)
                break
            except urllib.error.URLError:
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server never answered"
                time.sleep(0.2)
        assert answer["usage"]["completion_tokens"] == 4
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) == 0


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in COMMANDS:
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, re.M), line


def test_links_of_the_readme_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
