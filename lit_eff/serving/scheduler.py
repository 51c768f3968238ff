"""One decoding thread for all requests: those under way take turns, one round each, and others wait in order.

Taking turns keeps a short request from waiting for a long one; the event loop never computes. While no client
waits, the thread runs sampled requests in full for the monitor, a round at a time: a client who comes then
waits for one round at most.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import closing
from typing import NamedTuple

from lit_eff.runtime.text import PreparedRequest, TextChunk, TextEngine
from lit_eff.serving.metrics import Metrics
from lit_eff.serving.trace import RoundTrace
from lit_eff.serving.watch import Watch

_log = logging.getLogger("uvicorn.error")


class BusyError(Exception):
    """As many requests wait as may wait."""


class StoppedError(Exception):
    """The server is shutting down."""


class Piece(NamedTuple):
    """A chunk of the completion of one of a job's prompts, by its number."""

    prompt: int
    chunk: TextChunk


class Job:
    """One client's request, of one or more prompts answered one after the other.

    Iterate over it on the event loop that made it; call :meth:`cancel` when nobody reads any more.
    """

    def __init__(self, prompts: Sequence[PreparedRequest]) -> None:
        self.prompts = prompts
        self.mode = prompts[0].tokens.mode
        self.arrived = time.perf_counter()
        self.cancelled = False
        self.number = 0  # given when it is submitted
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()

    def cancel(self) -> None:
        """Compute nothing more for it, from its next turn on."""
        self.cancelled = True

    def deliver(self, item: Piece | Exception | None) -> None:
        """From the decoding thread: a piece, the error that ended it, or ``None`` for the end."""
        try:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody is there
            self.cancelled = True

    async def __aiter__(self) -> AsyncIterator[Piece]:
        while (item := await self._pieces.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item


class Scheduler:
    """Runs jobs over an engine.

    Args:
        max_active: jobs that take turns; each holds a KV cache.
        max_waiting: jobs that wait beyond those.
        watch: the monitor of the engine's certificate.
        trace: keeps every round.
    """

    def __init__(
        self,
        engine: TextEngine,
        metrics: Metrics,
        *,
        max_active: int,
        max_waiting: int,
        watch: Watch | None = None,
        trace: RoundTrace | None = None,
    ) -> None:
        self._engine, self._metrics, self._watch, self._trace = engine, metrics, watch, trace
        self._max_active, self._max_waiting = max_active, max_waiting
        self._numbers = itertools.count(1)
        self._waiting: deque[Job] = deque()
        self._active: deque[tuple[Job, Generator[Piece, None, None]]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="lit-eff-decoding", daemon=True)
        metrics.watch(lambda: len(self._active), lambda: len(self._waiting))

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            BusyError: when the queue is full.
            StoppedError: when the server is shutting down.
        """
        with self._changed:
            if self._stopping:
                raise StoppedError
            # Cancelled jobs leave the queue at once: they must not keep others out.
            self._waiting = deque(waiting for waiting in self._waiting if not self._drop(waiting))
            free = self._max_active - len(self._active)
            if len(self._waiting) >= self._max_waiting + max(0, free):
                raise BusyError
            job.number = next(self._numbers)
            self._waiting.append(job)
            self._changed.notify()

    def stop(self) -> None:
        """End the thread after the round under way; jobs that are left end with :class:`StoppedError`."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        if self._watch is not None:
            self._watch.close()

    def _drop(self, job: Job) -> bool:
        if job.cancelled:
            self._metrics.requests.labels(job.mode, "cancelled").inc()
        return job.cancelled

    def _run(self) -> None:
        while self._admit():
            if not self._active:
                assert self._watch is not None
                began = time.perf_counter()
                self._watch.step()
                if self._trace is not None:
                    self._trace.monitored(began)
                continue
            job, pieces = self._active[0]
            if self._drop(job):
                pieces.close()
                self._active.popleft()
                continue
            try:
                piece = next(pieces)
            except Exception as error:
                _log.exception("decoding failed")
                self._active.popleft()
                self._finish(job, "failed", error)
                continue
            job.deliver(piece)
            if piece.chunk.finish_reason is None or piece.prompt + 1 < len(job.prompts):
                self._active.rotate(-1)
                continue
            pieces.close()  # its KV cache is free now, not when the next job takes its turn
            self._active.popleft()
            self._metrics.request_seconds.labels(job.mode).observe(time.perf_counter() - job.arrived)
            self._finish(job, "completed", None)
            if self._watch is not None:
                for prompt in job.prompts:
                    self._watch.answered(prompt.tokens)

    def _admit(self) -> bool:
        """Wait for work and let waiting jobs in; False when stopping. Without a job, the monitor has work."""
        with self._changed:
            while not (self._active or self._waiting or self._stopping or self._idle_work):
                self._changed.wait()
            if self._stopping:
                left = [*(job for job, _ in self._active), *self._waiting]
                for _, pieces in self._active:
                    pieces.close()
                self._active.clear()
                self._waiting.clear()
                for job in left:
                    self._finish(job, "failed", StoppedError())
                return False
            while self._waiting and len(self._active) < self._max_active:
                job = self._waiting.popleft()
                self._active.append((job, self._pieces(job)))
        return True

    @property
    def _idle_work(self) -> bool:
        return self._watch is not None and self._watch.pending

    def _finish(self, job: Job, outcome: str, item: Exception | None) -> None:
        self._metrics.requests.labels(job.mode, outcome).inc()
        job.deliver(item)

    def _pieces(self, job: Job) -> Generator[Piece, None, None]:
        first = True
        if self._trace is not None:
            self._trace.waited(job.number, job.mode, job.arrived)
        for index, prompt in enumerate(job.prompts):
            self._metrics.prompt_tokens.labels(job.mode).inc(len(prompt.tokens.prompt_tokens))
            with closing(self._engine.stream(prompt)) as chunks:
                for chunk in chunks:
                    self._metrics.observe(job.mode, chunk.round)
                    if self._trace is not None:
                        queue = {"active": len(self._active), "waiting": len(self._waiting)}
                        self._trace.round(job.number, job.mode, index, chunk.round, **queue)
                    if self._watch is not None:
                        self._watch.observe(prompt.tokens, chunk.round)
                    if first:
                        waited = time.perf_counter() - job.arrived
                        self._metrics.first_token_seconds.labels(job.mode).observe(waited)
                        first = False
                    yield Piece(index, chunk)
