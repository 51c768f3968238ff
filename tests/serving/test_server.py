"""A real server on the loopback: chunks arrive as they are made, leaving stops it, signals end it well."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from lit_eff.errors import UserError
from lit_eff.runtime.text import TextEngine
from lit_eff.serving.config import ServeConfig
from lit_eff.serving.server import listen, make_server
from tests.runtime.fakes import scripted_engine

ROOT = Path(__file__).parents[2]


def slow_engine(text: str, seconds: float) -> TextEngine:
    engine = scripted_engine(text)
    embed = engine.runner.embed

    def delayed(*arguments: object) -> object:
        time.sleep(seconds)
        return embed(*arguments)  # type: ignore[arg-type]

    engine.runner.embed = delayed  # type: ignore[method-assign,assignment]
    return engine


@contextmanager
def running(engine: TextEngine) -> Iterator[str]:
    config = ServeConfig(port=0, model_name="tiny")
    with listen(config) as listener:
        server = make_server(engine, config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)
            assert not thread.is_alive()


def test_events_arrive_while_decoding_and_leaving_stops_it() -> None:
    engine = slow_engine("x" * 300, 0.005)
    calls = engine.runner.segment_calls  # type: ignore[attr-defined]
    body = {"prompt": "", "max_tokens": 300, "temperature": 0, "stream": True}
    with running(engine) as address, httpx.Client(base_url=address, timeout=10) as client:
        with client.stream("POST", "/v1/completions", json=body) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = response.iter_lines()
            first = json.loads(next(lines).removeprefix("data: "))
            assert first["choices"][0]["text"]
            assert len(calls) < 300  # far from done
        time.sleep(0.2)
        left = len(calls)
        time.sleep(0.1)
        assert len(calls) == left < 600
        whole = client.post("/v1/completions", json={**body, "max_tokens": 4, "stream": False})
        assert whole.json()["usage"]["completion_tokens"] == 4
        assert 'outcome="cancelled"} 1.0' in client.get("/metrics").text


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}.*--port"):
            listen(ServeConfig(port=port))


SCRIPT = """
import sys
from types import SimpleNamespace
from lit_eff.cli import serve
from lit_eff.runtime.text import TextEngine
from tests.serving.test_server import slow_engine
serve.read_manifest = lambda folder: SimpleNamespace(serve={})
TextEngine.open = classmethod(lambda cls, folder, **settings: slow_engine("y" * 40, 0.02))
code = serve.main(["--bundle", "none", "--port", "0", "--model-name", "tiny"])
assert not {"torch", "lightning"} & set(sys.modules), "serving imported torch"
sys.exit(code)
"""


def test_an_interrupt_lets_requests_finish_and_exits_with_0() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    try:
        lines: list[str] = []
        while "Application startup complete" not in "".join(lines):
            line = process.stderr.readline()
            assert line, "".join(lines)
            lines.append(line)
        port = re.search(r"127\.0\.0\.1:(\d+)/v1", "".join(lines).replace("\n", ""))
        assert port is not None, "".join(lines)
        body = {"prompt": "", "max_tokens": 40, "temperature": 0, "stream": True}
        address = f"http://127.0.0.1:{port[1]}/v1/completions"
        with httpx.stream("POST", address, json=body, timeout=10) as response:
            chunks = response.iter_lines()
            next(chunks)
            process.send_signal(signal.SIGINT)
            rest = list(chunks)
        assert rest[-2:] == ["data: [DONE]", ""]
        assert '"finish_reason":"' in "".join(rest)
        assert process.wait(timeout=10) == 0
        assert "Stopped." in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()
        process.wait()
