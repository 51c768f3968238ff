"""The HTTP app over a scripted engine, through its ASGI interface."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import ClientDisconnect

from lit_eff.runtime.exit_rule import ExitRule
from lit_eff.runtime.text import TextEngine
from lit_eff.serving.app import create_app
from lit_eff.serving.config import ServeConfig
from tests.runtime.fakes import scripted_engine

TEXT = "Ein schöner Tag: 日本語 and more 👩‍👩‍👧!"
RULE = ExitRule(thresholds=(0.9, None))


def served(
    engine: TextEngine, scenario: Callable[[httpx.AsyncClient], Awaitable[Any]], **settings: Any
) -> Any:
    """Run an async scenario against an app within its lifespan."""

    async def main() -> Any:
        async with client_of(engine, **settings) as client:
            return await scenario(client)

    return asyncio.run(main())


@asynccontextmanager
async def client_of(engine: TextEngine, **settings: Any):  # type: ignore[no-untyped-def]
    app = create_app(engine, ServeConfig(model_name="tiny", **settings))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
            yield client


def post(engine: TextEngine, body: Any, **settings: Any) -> httpx.Response:
    async def scenario(client: httpx.AsyncClient) -> httpx.Response:
        if isinstance(body, bytes):
            return await client.post("/v1/completions", content=body)
        return await client.post("/v1/completions", json=body)

    return served(engine, scenario, **settings)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


@pytest.mark.parametrize("mode", ["autoregressive", "certified", "lossless"])
def test_a_whole_completion(mode: str) -> None:
    engine = scripted_engine(TEXT, uncertified=ExitRule(thresholds=(None, 1.0)))
    response = post(
        engine, {"model": "tiny", "prompt": "", "max_tokens": 200, "temperature": 0, "mode": mode}
    )
    assert response.status_code == 200
    body = response.json()
    assert body["object"] == "text_completion"
    assert body["choices"] == [{"text": TEXT, "index": 0, "logprobs": None, "finish_reason": "stop"}]
    tokens = len(engine.tokenizer.encode(TEXT, add_special_tokens=False).ids) + 1
    assert body["usage"] == {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    assert body["lit_eff"]["mode"] == mode
    if mode == "lossless":
        assert body["lit_eff"]["accepted"] > 0


def test_streamed_events_join_to_the_whole_text() -> None:
    engine = scripted_engine(TEXT)
    body = {"prompt": "", "max_tokens": 200, "temperature": 0, "stream": True}
    found = events(post(engine, {**body, "stream_options": {"include_usage": True}}))
    assert "".join(one["choices"][0]["text"] for one in found[:-1]) == TEXT
    assert not any("\ufffd" in one["choices"][0]["text"] for one in found[:-1])
    reasons = [one["choices"][0]["finish_reason"] for one in found[:-1]]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert len({one["id"] for one in found}) == 1
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["prompt_tokens"] == 1
    assert len(events(post(engine, body))) == len(found) - 1


def test_limits_stops_and_echo() -> None:
    engine = scripted_engine("one two three", prompt="Count: ")
    asked = {"prompt": "Count: ", "temperature": 0}
    short = post(engine, {**asked, "max_tokens": 2}).json()
    assert short["choices"][0]["finish_reason"] == "length"
    assert short["usage"]["completion_tokens"] == 2
    stopped = post(engine, {**asked, "max_tokens": 99, "stop": ["thr", "zzz"], "echo": True}).json()
    assert stopped["choices"][0]["text"] == "Count: one two "
    assert stopped["choices"][0]["finish_reason"] == "stop"
    streamed = events(post(engine, {**asked, "max_tokens": 99, "stop": " t", "echo": True, "stream": True}))
    assert "".join(one["choices"][0]["text"] for one in streamed) == "Count: one"
    defaults = post(engine, {"prompt": "Count: ", "max_tokens": None, "seed": 1}).json()
    assert defaults["usage"]["completion_tokens"] <= 16  # OpenAI's default


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_and_token_prompts(stream: bool) -> None:
    engine = scripted_engine("abc")
    for prompt in ([[0], [0]], ["", ""]):
        response = post(engine, {"prompt": prompt, "temperature": 0, "stream": stream})
        choices = [one["choices"][0] for one in events(response)] if stream else response.json()["choices"]
        for index in range(2):
            assert "".join(one["text"] for one in choices if one["index"] == index) == "abc"
    assert post(engine, {"prompt": [0], "temperature": 0}).json()["choices"][0]["text"] == "abc"


def test_seeds_reproduce_and_null_fields_count_as_left_out() -> None:
    engine = scripted_engine("abcdefgh")
    asked = {"prompt": "", "temperature": 30.0, "seed": 3, "stop": None, "logprobs": None}
    texts = [post(engine, {**asked, "mode": mode}).json()["choices"][0]["text"] for mode in ("lossless",) * 2]
    assert texts[0] == texts[1] != "abcdefgh"
    assert post(engine, {**asked, "seed": 4}).json()["choices"][0]["text"] != texts[0]


BAD = [
    ({"prompt": "", "tempreature": 1}, 400, "tempreature", "did you mean 'temperature'"),
    ({"prompt": "", "temperature": -1}, 400, None, "temperature is -1.0"),
    ({"prompt": "", "temperature": "hot"}, 400, "temperature", "temperature is 'hot'"),
    ({"prompt": "", "max_tokens": 0}, 400, None, "max_tokens is 0"),
    ({"prompt": "", "max_tokens": 2.5}, 400, "max_tokens", "max_tokens is 2.5"),
    ({"prompt": "", "n": 2}, 400, "n", "n is not supported"),
    ({"prompt": "", "logprobs": 0}, 400, "logprobs", "logprobs is not supported"),
    ({"prompt": "", "suffix": "x"}, 400, "suffix", "suffix is not supported"),
    ({"prompt": "", "stop": [""]}, 400, None, "stop string is empty"),
    ({"prompt": "", "mode": "fast"}, 400, "mode", "mode is 'fast'"),
    ({"prompt": "", "mode": "certified"}, 400, None, "needs a certificate"),
    ({"prompt": "", "mode": "lossless", "draft_exit": 3}, 400, None, "after layer 3"),
    ({"prompt": "", "logit_bias": {"99999": 1}}, 400, None, "token 99999"),
    ({"prompt": "x" * 99}, 400, None, "context holds"),
    ({"prompt": [99999]}, 400, None, "token 99999"),
    ({"prompt": []}, 400, "prompt", "prompt must be"),
    ({"prompt": ["", 3]}, 400, "prompt", "prompt must be"),
    ({}, 400, "prompt", "prompt"),
    ({"prompt": "", "model": "other"}, 404, "model", "'tiny'"),
    ([1], 400, None, "expected an object"),
    (b'{"prompt": ', 400, None, "not JSON"),
    (b"\xff\xfe", 400, None, "not JSON"),
    (b'{"prompt": "' + b"x" * 5000 + b'"}', 413, None, "longer than 4096 bytes"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "status", "param", "named"), BAD)
def test_bad_input_is_refused_in_openais_format(
    body: Any, status: int, param: str | None, named: str, stream: bool
) -> None:
    engine = scripted_engine("abc")
    if isinstance(body, dict):
        body = {**body, "stream": stream}
    response = post(engine, body, max_body_bytes=4096)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert named in error["message"]
    assert "\n" not in error["message"]
    assert error["param"] == param
    assert not engine.runner.segment_calls  # type: ignore[attr-defined]


def test_other_routes() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        models = (await client.get("/v1/models")).json()
        assert [model["id"] for model in models["data"]] == ["tiny"]
        assert models["data"][0]["modes"] == ["autoregressive", "lossless", "certified"]
        assert (await client.get("/v1/models/tiny")).json() == models["data"][0]
        assert (await client.get("/v1/models/none")).status_code == 404
        assert (await client.get("/health")).json() == {"status": "ok"}
        for response, status in (
            (await client.get("/v1/completions"), 405),
            (await client.post("/v1/chat/completions", json={}), 404),
        ):
            assert response.status_code == status
            assert "/v1/c" in response.json()["error"]["message"]

    served(scripted_engine("abc", uncertified=RULE), scenario)


def scraped(text: str) -> dict[tuple[str, ...], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = [value for _, value in sorted(sample.labels.items())]
            found[(sample.name.removeprefix("lit_eff_"), *labels)] = sample.value
    return found


def test_metrics_count_what_was_done() -> None:
    engine = scripted_engine("abcdefgh", uncertified=RULE)

    async def scenario(client: httpx.AsyncClient) -> tuple[list[dict[str, Any]], str]:
        bodies = []
        for mode in ("autoregressive", "certified", "lossless"):
            asked = {"prompt": ["", ""], "max_tokens": 6, "temperature": 0, "mode": mode}
            bodies.append((await client.post("/v1/completions", json=asked)).json())
        await client.post("/v1/completions", json={"prompt": "", "mode": "slow"})
        response = await client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        return bodies, response.text

    bodies, text = served(engine, scenario)
    found = scraped(text)
    for body in bodies:
        mode = body["lit_eff"]["mode"]
        assert found["requests_total", mode, "completed"] == 1
        assert found["prompt_tokens_total", mode] == 2
        assert found["tokens_total", mode] == body["usage"]["completion_tokens"] == 12
        assert found["rounds_total", mode] == body["lit_eff"]["rounds"]
        assert found["request_seconds_count", mode] == 1
        assert found["time_to_first_token_seconds_count", mode] == 1
    assert found["drafted_tokens_total",] == bodies[2]["lit_eff"]["drafted"] > 0
    assert found["accepted_tokens_total",] == bodies[2]["lit_eff"]["accepted"]
    assert found["exit_layer_bucket", "2.0", "autoregressive"] == 0
    assert found["exit_layer_bucket", "3.0", "autoregressive"] == 12
    assert found["exit_layer_bucket", "1.0", "certified"] == 12
    assert found["active_requests",] == 0


class Gate:
    """Makes a runner wait, so that a test decides when decoding goes on."""

    def __init__(self, engine: TextEngine, seconds: float = 0.0) -> None:
        self.open, self.calls, self.seconds = threading.Event(), 0, seconds
        self.open.set()
        self._run = engine.runner.run_segment
        engine.runner.run_segment = self  # type: ignore[method-assign,assignment]

    def __call__(self, *arguments: Any) -> Any:
        self.open.wait(20)
        time.sleep(self.seconds)
        self.calls += 1
        return self._run(*arguments)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited in vain")


async def disconnecting(app: Any, body: dict[str, Any], gone: asyncio.Event, *, spec: str) -> list[dict]:
    """One request over bare ASGI whose client leaves when ``gone`` is set."""
    payload, sent = json.dumps(body).encode(), []
    read = False

    async def receive() -> dict[str, Any]:
        nonlocal read
        if not read:
            read = True
            return {"type": "http.request", "body": payload, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if gone.is_set() and spec >= "2.4":
            raise OSError("the client is gone")
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": spec},
        "method": "POST",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "query_string": b"",
        "headers": [],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("tiny", 80),
    }
    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_the_computation(stream: bool, spec: str) -> None:
    engine = scripted_engine("x" * 400)
    gate = Gate(engine, seconds=0.001)

    async def main() -> None:
        app = create_app(engine, ServeConfig())
        gone = asyncio.Event()
        async with app.router.lifespan_context(app):
            body = {"prompt": "", "max_tokens": 400, "temperature": 0, "stream": stream}
            request = asyncio.create_task(disconnecting(app, body, gone, spec=spec))
            await until(lambda: gate.calls > 9)
            gone.set()
            outcome = (await asyncio.gather(request, return_exceptions=True))[0]
            assert isinstance(outcome, (OSError, ClientDisconnect) if spec == "2.4" else list)
            await asyncio.sleep(0.05)
            calls = gate.calls
            assert calls < 150
            await asyncio.sleep(0.1)
            assert gate.calls == calls

    asyncio.run(main())


def test_cancelled_requests_are_counted_and_leave_the_queue() -> None:
    engine = scripted_engine("x" * 50)
    gate = Gate(engine)

    async def main() -> None:
        app = create_app(engine, ServeConfig(max_active=1, max_waiting=1))
        async with app.router.lifespan_context(app):
            body = {"prompt": "", "max_tokens": 50, "temperature": 0}
            gate.open.clear()
            leaving = [asyncio.Event(), asyncio.Event()]
            requests = []
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:

                async def metric(*name: str, wanted: float) -> None:
                    for _ in range(400):
                        if scraped((await client.get("/metrics")).text).get(name) == wanted:
                            return
                        await asyncio.sleep(0.005)
                    raise AssertionError(f"{name} never became {wanted}")

                for gone, gauge in zip(leaving, ("active_requests", "waiting_requests"), strict=True):
                    requests.append(asyncio.create_task(disconnecting(app, body, gone, spec="2.3")))
                    await metric(gauge, wanted=1)
                refused = await client.post("/v1/completions", json=body)
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "overloaded"
                leaving[1].set()  # the one that waits; its place is free at once
                await requests[1]
                last = asyncio.create_task(client.post("/v1/completions", json=body))
                await metric("requests_total", "autoregressive", "cancelled", wanted=1)
                gate.open.set()
                assert (await last).status_code == 200
                await requests[0]
                await metric("requests_total", "autoregressive", "completed", wanted=2)

    asyncio.run(main())


def test_requests_take_turns_and_the_event_loop_stays_free() -> None:
    """A short request sent after a long one ends first, and /health answers while both decode."""
    engine = scripted_engine("x" * 300)
    gate = Gate(engine, seconds=0.001)
    order = []

    async def scenario(client: httpx.AsyncClient) -> None:
        async def ask(name: str, max_tokens: int) -> None:
            await client.post(
                "/v1/completions", json={"prompt": "", "max_tokens": max_tokens, "temperature": 0}
            )
            order.append(name)

        long = asyncio.create_task(ask("long", 200))
        await until(lambda: gate.calls > 3)
        short = asyncio.create_task(ask("short", 5))
        started = time.perf_counter()
        assert (await client.get("/health")).status_code == 200
        assert time.perf_counter() - started < 0.3
        await asyncio.gather(long, short)

    served(engine, scenario)
    assert order == ["short", "long"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_while_decoding_ends_that_request_only(stream: bool) -> None:
    engine = scripted_engine("abcdef")
    head = engine.runner.head

    def broken(e: int, hidden_TC: np.ndarray) -> np.ndarray:
        logits_TV = head(e, hidden_TC)
        return logits_TV * np.nan if hidden_TC[-1, 0] == 3 else logits_TV

    engine.runner.head = broken  # type: ignore[method-assign,assignment]

    async def scenario(client: httpx.AsyncClient) -> None:
        body = {"prompt": "", "max_tokens": 9, "temperature": 0, "stream": stream}
        if stream:
            found = events(await client.post("/v1/completions", json=body))
            assert "nan" in found[-1]["error"]["message"]
            assert found[-1]["error"]["type"] == "server_error"
        else:
            with pytest.raises(Exception, match="nan"):  # re-raised for the server's log
                await client.post("/v1/completions", json=body)
        ok = await client.post("/v1/completions", json={**body, "max_tokens": 2, "stream": False})
        assert ok.json()["choices"][0]["finish_reason"] == "length"

    served(engine, scenario)


def test_shutting_down_ends_requests_that_are_left() -> None:
    engine = scripted_engine("x" * 300)
    Gate(engine, seconds=0.002)

    async def main() -> httpx.Response:
        async with client_of(engine) as client:
            body = {"prompt": "", "max_tokens": 300, "temperature": 0}
            request = asyncio.create_task(client.post("/v1/completions", json=body))
            await asyncio.sleep(0.1)
            app = client._transport.app  # type: ignore[attr-defined]
            server = app.routes[0].endpoint.__self__
            await asyncio.to_thread(server.scheduler.stop)
            assert (await client.get("/health")).status_code == 503
            assert (await client.post("/v1/completions", json=body)).status_code == 503
            return await request

    response = asyncio.run(main())
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "shutting_down"
