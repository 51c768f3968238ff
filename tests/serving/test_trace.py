"""The rounds of a server as spans: every one of them, by request, bounded, and nothing where it is off."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from lit_eff.errors import UserError
from lit_eff.runtime.decode import Round
from lit_eff.runtime.exit_rule import ExitRule
from lit_eff.serving.config import ServeConfig
from lit_eff.serving.trace import MONITOR, RoundTrace
from tests.runtime.fakes import scripted_engine
from tests.serving.test_app import post, served
from tests.serving.test_watch import ask, monitored, serving, watched_engine

TEXT = "one two three four five six"


def a_round(seconds: float = 0.001, **changes: Any) -> Round:
    values: dict[str, Any] = {
        "tokens": (1,),
        "drafted": (),
        "accepted": 0,
        "exit_index": 1,
        "layer_launches": 3,
        "layer_tokens": 3,
        "finish_reason": None,
    }
    return Round(seconds=seconds, **{**values, **changes})


def spans_of(events: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Complete events by the name of their thread."""
    names = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in events["traceEvents"]
        if event["ph"] == "M" and event["name"] == "thread_name"
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for event in events["traceEvents"]:
        if event["ph"] == "X":
            found.setdefault(names[event["pid"], event["tid"]], []).append(event)
    return found


def test_the_rounds_of_two_requests(tmp_path: Path) -> None:
    engine = scripted_engine(TEXT, uncertified=ExitRule(thresholds=(0.5, None)))
    path = tmp_path / "rounds.json.gz"

    async def scenario(client: httpx.AsyncClient) -> tuple[Any, list[Any]]:
        bodies = [
            {"prompt": "", "max_tokens": 99, "temperature": 0, "mode": mode}
            for mode in ("lossless", "certified")
        ]
        answers = await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))
        return (await client.get("/trace")).json(), [answer.json()["lit_eff"] for answer in answers]

    events, answers = served(engine, scenario, trace=str(path))
    tracks = spans_of(events)
    assert sorted(tracks) == ["request 1", "request 2"]
    for track, answer in zip(("request 1", "request 2"), answers, strict=True):
        waiting, *rounds = sorted(tracks[track], key=lambda event: float(event["ts"]))
        assert waiting["name"] == "waiting"
        assert len(rounds) == answer["rounds"]
        assert {event["args"]["mode"] for event in rounds} == {answer["mode"]}
        assert sum(event["args"].get("drafted", 0) for event in rounds) == answer["drafted"]
        assert sum(event["args"].get("accepted", 0) for event in rounds) == answer["accepted"]
        ends = [event["ts"] + event["dur"] for event in (waiting, *rounds)]
        assert all(end <= later["ts"] + 1 for end, later in zip(ends, rounds, strict=False))
    assert any(event["name"] == "left at layer 1" for event in tracks["request 2"])
    assert all(event["args"]["exit_layer"] in (1, 3) for event in tracks["request 2"][1:])
    counters = {event["name"] for event in events["traceEvents"] if event["ph"] == "C"}
    assert counters == {"active requests", "waiting requests"}
    with gzip.open(path, "rt", encoding="utf-8") as file:  # written when the server stopped
        assert spans_of(json.load(file)) == tracks


def test_full_runs_for_the_monitor_have_a_track(tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> Any:
        await ask(client)
        await monitored(client, 1)
        return (await client.get("/trace")).json()

    events = serving(watched_engine(), scenario, trace=str(tmp_path / "rounds.json.gz"))
    tracks = spans_of(events)
    assert sorted(tracks) == ["monitor", "request 1"]
    answered = max(event["ts"] + event["dur"] for event in tracks["request 1"])
    assert all(event["ts"] >= answered - 1 for event in tracks["monitor"])  # while no client waited


def test_the_ring_keeps_the_last_rounds() -> None:
    trace = RoundTrace((2, 4), most=5)
    for number in range(12):
        trace.round(1, "certified", 0, a_round(layer_launches=number), active=1, waiting=0)
    timeline = trace.timeline()
    assert [span.details["layers"] for span in timeline.spans] == [7, 8, 9, 10, 11]
    assert timeline.dropped == 7
    assert len(timeline.samples) == 10


def test_names_tell_how_a_round_went() -> None:
    trace = RoundTrace((2, 4), most=5)
    trace.round(1, "lossless", 0, a_round(exit_index=None, drafted=(1, 2), accepted=1), active=1, waiting=3)
    trace.round(1, "certified", 0, a_round(exit_index=0), active=1, waiting=3)
    trace.round(1, "certified", 0, a_round(0.5), active=1, waiting=3)
    trace.monitored(time.perf_counter() - 0.25)
    spans = trace.timeline().spans
    names = [span.name for span in spans]
    assert names == ["accepted 1 of 2", "left at layer 2", "full model", "full run for the monitor"]
    assert spans[2].duration == 0.5
    assert spans[3].duration == pytest.approx(0.25, abs=0.05)
    assert spans[3].track == MONITOR


def test_off_it_keeps_nothing_and_calls_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("the trace is off")

    for name in ("__init__", "round", "waited", "monitored", "timeline"):
        monkeypatch.setattr(RoundTrace, name, fail)
    engine = scripted_engine(TEXT)

    async def scenario(client: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response]:
        body = {"prompt": "", "max_tokens": 9, "temperature": 0}
        return await client.post("/v1/completions", json=body), await client.get("/trace")

    answer, refused = served(engine, scenario)
    assert answer.status_code == 200
    assert refused.status_code == 404
    assert "--trace FILE" in refused.json()["error"]["message"]


def test_a_trace_that_cannot_be_written_does_not_stop_the_server_from_stopping(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "rounds.json.gz"  # below a file
    response = post(
        scripted_engine(TEXT), {"prompt": "", "max_tokens": 9, "temperature": 0}, trace=str(target)
    )
    assert response.status_code == 200
    assert "cannot write the trace" in caplog.text


def test_a_name_that_viewers_would_not_know_is_refused() -> None:
    with pytest.raises(UserError, match=r"ends in \.json\.gz"):
        ServeConfig(trace="rounds.txt")
    with pytest.raises(UserError, match="trace_rounds is 0"):
        ServeConfig(trace_rounds=0)


def test_serving_with_a_trace_needs_no_torch() -> None:
    code = "import sys, lit_eff.serving.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
