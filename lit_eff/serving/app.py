"""The HTTP app: OpenAI's ``/v1/completions`` and ``/v1/models``; health, metrics, monitor and trace."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from lit_eff.errors import UserError
from lit_eff.runtime.claim import sentence
from lit_eff.runtime.decode import Mode
from lit_eff.runtime.summary import Summary
from lit_eff.runtime.text import PreparedRequest, TextEngine
from lit_eff.serving.config import ServeConfig
from lit_eff.serving.metrics import CONTENT_TYPE, Metrics
from lit_eff.serving.protocol import DONE, ApiError, CompletionRequest, choice, event, usage
from lit_eff.serving.scheduler import BusyError, Job, Piece, Scheduler, StoppedError
from lit_eff.serving.trace import RoundTrace
from lit_eff.serving.watch import Watch

_log = logging.getLogger("uvicorn.error")
CLIENT_CLOSED_REQUEST = 499  # nobody reads it; it names the outcome in logs


def create_app(engine: TextEngine, config: ServeConfig | None = None) -> Starlette:
    """An ASGI app that serves one engine; its decoding thread lives as long as the app's lifespan."""
    server = _Server(engine, config or ServeConfig())
    return Starlette(
        routes=[
            Route("/v1/completions", server.completions, methods=["POST"]),
            Route("/v1/models", server.models),
            Route("/v1/models/{name:path}", server.model),
            Route("/health", server.health),
            Route("/metrics", server.metrics_text),
            Route("/monitor", server.monitor),
            Route("/trace", server.trace_json),
        ],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _unexpected},
        lifespan=server.lifespan,
    )


class _Server:
    def __init__(self, engine: TextEngine, config: ServeConfig) -> None:
        self.engine, self.config = engine, config
        self.name = config.model_name or engine.name
        self.created = int(time.time())
        self.metrics = Metrics(engine.runner.exit_layers)
        self.watch = Watch.of(engine, config)
        if self.watch is not None:
            self.metrics.monitor(self.watch.report)
        exit_layers = engine.runner.exit_layers
        self.trace = None if config.trace is None else RoundTrace(exit_layers, config.trace_rounds)
        self.scheduler = Scheduler(
            engine,
            self.metrics,
            max_active=config.max_active,
            max_waiting=config.max_waiting,
            watch=self.watch,
            trace=self.trace,
        )

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.scheduler.start()
        if self.watch is not None:
            self.watch.announce()
        try:
            yield
        finally:
            await run_in_threadpool(self.scheduler.stop)
            await run_in_threadpool(self._save_trace)

    async def completions(self, request: Request) -> Response:
        """``POST /v1/completions``, as one body or as server-sent events."""
        asked = CompletionRequest.parse(await self._body(request))
        self._check_model(asked.model)
        try:
            prompts = await run_in_threadpool(self._prepare, asked)
        except UserError as error:
            raise ApiError(str(error)) from None
        answer = _Answer(self.engine, asked, prompts, self.name)
        job = Job(prompts)
        try:
            self.scheduler.submit(job)
        except BusyError:
            self.metrics.requests.labels(job.mode, "refused").inc()
            message = f"{self.config.max_waiting} requests wait already; try again later"
            raise ApiError(message, status=503, code="overloaded") from None
        except StoppedError:
            raise _stopped() from None
        if asked.stream:
            headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
            return _EventStream(job, answer.events(job), headers=headers)
        return await self._whole(request, job, answer)

    async def _whole(self, request: Request, job: Job, answer: _Answer) -> Response:
        """Collect everything, unless the client goes away first."""
        collecting = asyncio.create_task(answer.collect(job))
        leaving = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait((collecting, leaving), return_when=asyncio.FIRST_COMPLETED)
            if collecting.done():
                return JSONResponse(collecting.result())
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except StoppedError:
            raise _stopped() from None
        finally:
            job.cancel()
            collecting.cancel()
            leaving.cancel()

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model_card()]})

    async def model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model_card())

    async def health(self, request: Request) -> Response:
        if self.scheduler.alive:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "stopping"}, status_code=503)

    async def metrics_text(self, request: Request) -> Response:
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def monitor(self, request: Request) -> Response:
        """``GET /monitor``: whether the certificate still holds, in a sentence and in figures."""
        if self.watch is None:
            raise ApiError("nothing to monitor: no certificate is in use", status=404)
        return JSONResponse(self.watch.report())

    async def trace_json(self, request: Request) -> Response:
        """``GET /trace``: the rounds decoded last, for Perfetto."""
        if self.trace is None:
            raise ApiError("no trace is kept: start the server with --trace FILE", status=404)
        body = await run_in_threadpool(self.trace.gzipped)
        headers = {"content-encoding": "gzip", "cache-control": "no-store"}
        return Response(body, media_type="application/json", headers=headers)

    def _save_trace(self) -> None:
        if self.trace is None or self.config.trace is None:
            return
        try:
            self.trace.save(Path(self.config.trace))
        except OSError as error:
            _log.error("cannot write the trace to %s: %s", self.config.trace, error)

    def _prepare(self, asked: CompletionRequest) -> list[PreparedRequest]:
        return [self.engine.prepare(one) for one in asked.text_requests(self.engine.decoding.mode)]

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self.name:
            message = f"model {name!r} is not served here; this server has {self.name!r}"
            raise ApiError(message, status=404, code="model_not_found", param="model")

    async def _body(self, request: Request) -> bytes:
        limit, parts, size = self.config.max_body_bytes, [], 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise ApiError(f"the body is longer than {limit} bytes", status=413)
            parts.append(part)
        return b"".join(parts)

    def _model_card(self) -> dict[str, Any]:
        engine = self.engine
        modes: list[Mode] = ["autoregressive"]
        if len(engine.runner.exit_layers) > 1:
            modes.append("lossless")
        if engine.certificate is not None or engine.uncertified is not None:
            modes.append("certified")
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "lit_eff",
            "context": engine.runner.context,
            "exit_layers": engine.runner.exit_layers,
            "modes": modes,
            "certificate": sentence(engine.certificate) if engine.certificate is not None else None,
            "monitor": self.watch.sentence() if self.watch is not None else None,
        }


class _Answer:
    """Pieces of one job as OpenAI objects."""

    def __init__(
        self, engine: TextEngine, asked: CompletionRequest, prompts: list[PreparedRequest], name: str
    ) -> None:
        self.engine, self.asked, self.prompts = engine, asked, prompts
        self.head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": name,
        }
        self.pieces: list[Piece] = []

    async def collect(self, job: Job) -> dict[str, Any]:
        """The body of a whole completion."""
        async for piece in job:
            self.pieces.append(piece)
        choices = []
        for index, prompt in enumerate(self.prompts):
            chunks = [piece.chunk for piece in self.pieces if piece.prompt == index]
            text = self._echo(prompt) + "".join(chunk.text for chunk in chunks)
            choices.append(choice(index, text, chunks[-1].finish_reason))
        return {**self.head, "choices": choices, **self._account()}

    async def events(self, job: Job) -> AsyncIterator[str]:
        """The server-sent events of a streamed completion."""
        started = -1
        try:
            async for piece in job:
                self.pieces.append(piece)
                text, finish_reason = piece.chunk.text, piece.chunk.finish_reason
                if piece.prompt > started:
                    started = piece.prompt
                    text = self._echo(self.prompts[started]) + text
                if text or finish_reason:
                    yield event({**self.head, "choices": [choice(piece.prompt, text, finish_reason)]})
            if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
                yield event({**self.head, "choices": [], **self._account()})
        except StoppedError:
            yield event(_stopped().body())
        except Exception as error:  # the status line is out: the error can only follow as an event
            yield event(_internal(error).body())
        yield DONE

    def _echo(self, prompt: PreparedRequest) -> str:
        if not self.asked.echo:
            return ""
        return self.engine.tokenizer.decode(list(prompt.tokens.prompt_tokens), skip_special_tokens=True)

    def _account(self) -> dict[str, Any]:
        """Usage, and how the text came about."""
        summary = Summary.of((piece.chunk.round for piece in self.pieces), self.engine.runner.exit_layers)
        completion = sum(p.chunk.completion_tokens for p in self.pieces if p.chunk.finish_reason)
        return {
            "usage": usage(sum(len(prompt.tokens.prompt_tokens) for prompt in self.prompts), completion),
            "lit_eff": {
                "mode": self.prompts[0].tokens.mode,
                "promise": self.engine.promise(self.prompts[0]),
                "rounds": summary.rounds,
                "drafted": summary.drafted,
                "accepted": summary.accepted,
                "layers_per_token": summary.layers_per_token,
                "alarm": self.engine.alarm,
                "exits_off": self.engine.exits_off,
            },
        }


class _EventStream(StreamingResponse):
    """Server-sent events; a client that leaves ends the job, whichever way the server tells of it."""

    media_type = "text/event-stream"

    def __init__(self, job: Job, events: AsyncIterator[str], headers: dict[str, str]) -> None:
        super().__init__(events, headers=headers)
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _stopped() -> ApiError:
    return ApiError("the server is shutting down", status=503, code="shutting_down")


def _internal(error: Exception) -> ApiError:
    if isinstance(error, UserError):
        return ApiError(str(error), status=500)
    return ApiError(f"internal error: {type(error).__name__}", status=500)


def _respond(error: ApiError) -> Response:
    return JSONResponse(error.body(), status_code=error.status)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _respond(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _respond(
        ApiError(f"{request.method} {request.url.path}: {error.detail}", status=error.status_code)
    )


async def _unexpected(request: Request, error: Exception) -> Response:
    return _respond(_internal(error))
