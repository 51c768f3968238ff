"""A run folder as it is written, and TensorBoard itself serving it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from lit_eff.profiling.report import load_report
from lit_eff.profiling.tensorboard import clean, lines_markdown, numbers_markdown, traffic_scalars
from lit_eff.profiling.timeline import Timeline
from lit_eff.profiling.titles import titles
from lit_eff.profiling.traffic import KernelTraffic
from lit_eff.profiling.write import write_report
from tests.profiling.browser import needs_browser, rendered
from tests.profiling.sample_run import record, report, timeline, write_run

RUN = "version_0"
START_SECONDS = 60.0


@dataclass
class Board:
    """A TensorBoard that serves a run."""

    url: str
    folder: Path
    written: list[Path]

    def get(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(query)}", timeout=30) as reply:
            content = reply.read()
        return json.loads(content) if "json" in reply.headers["Content-Type"] else content

    def wait_for(self, path: str, key: str) -> Any:
        """Until a plugin that loads in the background has loaded."""
        until = time.monotonic() + START_SECONDS
        while not (found := self.get(path)[key]) and time.monotonic() < until:
            time.sleep(0.1)
        return found


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    logs = tmp_path_factory.mktemp("logs")
    folder = logs / RUN
    folder.mkdir()
    written = write_run(folder)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--host", "127.0.0.1"]
    with (
        open(logs / "output", "w+") as output,
        subprocess.Popen(
            [*command, "--port", "0", "--load_fast=false"], stdout=output, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            until = time.monotonic() + START_SECONDS
            while not (url := re.search(r"http://127\.0\.0\.1:\d+/", (logs / "output").read_text())):
                assert process.poll() is None, (logs / "output").read_text()
                assert time.monotonic() < until, (logs / "output").read_text()
                time.sleep(0.1)
            served = Board(url[0], folder, written)
            while served.get("data/runs") != [RUN] and time.monotonic() < until:
                time.sleep(0.1)
            yield served
        finally:
            process.terminate()


def test_run_and_scalars_are_served(board: Board) -> None:
    assert board.get("data/runs") == [RUN]
    tags = board.get("data/plugin/scalars/tags")[RUN]
    assert set(tags) == set(traffic_scalars(report().records))
    tag = "hbm_bytes_measured/flash_forward_kernel_length_1024"
    ((_, step, value),) = board.get("data/plugin/scalars/scalars", run=RUN, tag=tag)
    assert (step, value) == (0, 800)


def test_image_is_served(board: Board) -> None:
    assert set(board.get("data/plugin/images/tags")[RUN]) == {"figures/roofline"}
    (image,) = board.get("data/plugin/images/images", run=RUN, tag="figures/roofline", sample="0")
    picture = board.get(f"data/plugin/images/individualImage?{image['query']}&")
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"


def test_texts_are_served(board: Board) -> None:
    tags = {tag.removesuffix("/text_summary") for tag in board.get("data/plugin/text/tags")[RUN]}
    assert tags == {
        "profile/about",
        "kernels/flash_forward_kernel",
        "kernels/flash_backward_kernel",
        "lines/flash_forward_kernel",
        "tables/Bytes_by_module",
    }
    (text,) = board.get("data/plugin/text/text", run=RUN, tag="tables/Bytes_by_module/text_summary")
    assert "<td>layers.10</td>" in text["text"]
    assert "<script>" not in text["text"]


def test_hparams_are_served(board: Board) -> None:
    request = urllib.request.Request(
        f"{board.url}data/plugin/hparams/experiment",
        data=b'{"experimentName": ""}',
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        experiment = json.load(reply)
    assert {each["name"] for each in experiment["hparamInfos"]} == {"device", "torch"}
    assert len(experiment["metricInfos"]) == len(traffic_scalars(report().records))


def test_classic_plugin_loads_the_trace(board: Board) -> None:
    pytest.importorskip("torch_tb_profiler", reason="torch-tb-profiler is not installed")
    assert board.wait_for("data/plugin/pytorch_profiler/runs", "runs") == [RUN]
    views = board.get("data/plugin/pytorch_profiler/views", run=RUN)
    assert views == ["Overview", "Operator", "Kernel", "Trace"]
    (worker,) = board.get("data/plugin/pytorch_profiler/workers", run=RUN, view="Overview")
    (span,) = board.get("data/plugin/pytorch_profiler/spans", run=RUN, worker=worker)
    table = board.get("data/plugin/pytorch_profiler/kernel/table", run=RUN, worker=worker, span=span)
    rows = table["data"]["rows"]
    assert [row[0] for row in rows] == ["flash_forward_kernel"]


@needs_browser
def test_a_browser_shows_the_scalars(board: Board, tmp_path: Path) -> None:
    dom, log = rendered(f"{board.url}#timeseries", tmp_path, milliseconds=10_000)
    assert "hbm_bytes_counted" in dom
    assert "flash_forward_kernel_length_1024" in dom
    assert "ERROR:CONSOLE" not in log, log


def test_run_folder_holds_everything(board: Board) -> None:
    names = sorted(str(path.relative_to(board.folder)) for path in board.written)
    assert all(path.stat().st_size > 0 for path in board.written)
    (classic,) = [name for name in names if name.endswith(".pt.trace.json.gz")]
    (xplane,) = [name for name in names if name.endswith(".xplane.pb")]
    assert xplane.startswith(f"plugins/profile/{RUN}/")
    others = {"profile.json", "profile.html", "figures/roofline.png", "trace.perfetto.json.gz"}
    assert set(names) == others | {classic, xplane}
    assert load_report(board.folder) == report()


def test_torch_profilers_own_trace_is_kept(tmp_path: Path) -> None:
    """A second one of the same steps would show them twice."""
    own = tmp_path / "host_0.17.pt.trace.json.gz"
    own.write_bytes(b"")
    with SummaryWriter(str(tmp_path)) as writer:
        written = write_report(report(), timeline(1), {}, tmp_path, writer)
    assert not any(path.name.endswith(".pt.trace.json.gz") for path in written)
    assert list(tmp_path.glob("*.pt.trace.json*")) == [own]


def test_without_a_timeline_there_are_no_traces(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        written = write_report(report(), Timeline(), {"empty": Figure()}, tmp_path, writer)
    assert {path.name for path in written} == {"profile.json", "profile.html", "empty.png"}


def test_scalars_by_hand() -> None:
    scalars = traffic_scalars(report().records)
    flash = "flash_forward_kernel_length_1024"
    assert scalars[f"hbm_bytes_counted/{flash}"] == 1000
    assert scalars[f"hbm_bytes_measured/{flash}"] == 800
    assert scalars[f"baseline_ratio_modelled/{flash}"] == 9
    assert scalars[f"occupancy_measured/{flash}"] == 0.5
    assert scalars[f"seconds_measured/{flash}"] == 1e-6
    assert not any(tag.startswith("joules") for tag in scalars)  # unavailable
    assert list(scalars) == sorted(scalars)
    assert all(re.fullmatch(r"[-\w.#=]+/[-\w.#=]+", tag) for tag in scalars)


def test_titles_tell_records_apart() -> None:
    alike = [record(length=1), record(length=2), record(length=2), KernelTraffic("other", {"rows": 3})]
    assert titles(alike) == [
        "flash_forward_kernel (length 1)",
        "flash_forward_kernel (length 2)",
        "flash_forward_kernel (length 2) #2",
        "other",
    ]
    assert clean("a b/c (d 1, e)") == "a_b_c_d_1_e"


def test_markdown_has_a_column_a_source() -> None:
    flash = report().records[0]
    lines = numbers_markdown(flash).splitlines()
    assert "| read_bytes, B |  | 750 (interpreter) | 750 (formula) |  |" in lines
    assert "| joules, J |  |  |  | no NVML |" in lines
    rows = lines_markdown(flash.lines).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| 9", "| 12"]
    assert "350 | 318 | 5 |" in rows[0]
