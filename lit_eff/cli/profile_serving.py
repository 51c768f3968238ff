"""A server's decoding thread under several requests, each round a span: the part ``serving``."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from lit_eff.cli.profile_engine import Profiled, open_engine
from lit_eff.cli.profile_job import Job as ProfileJob
from lit_eff.profiling.report import Findings, ReportTable
from lit_eff.runtime.decode import Mode
from lit_eff.runtime.text import TextRequest
from lit_eff.serving.config import ServeConfig
from lit_eff.serving.metrics import Metrics
from lit_eff.serving.scheduler import Job, Scheduler
from lit_eff.serving.trace import RoundTrace


@dataclass(frozen=True)
class _Answer:
    """Seconds from a request's arrival to its first tokens and to its end."""

    mode: Mode
    first: float
    last: float
    tokens: int


def serving(job: ProfileJob) -> Findings:
    """Send requests at once to the scheduler that ``lit-eff serve`` runs, their modes in turn.

    Raises:
        UserError: as :func:`lit_eff.cli.profile_engine.open_engine`.
    """
    profiled = open_engine(job)
    config = ServeConfig(**job.recipe.values.get("serve") or {})
    trace = RoundTrace(profiled.engine.runner.exit_layers, config.trace_rounds)
    with job.console.status(f"Serving {job.profile.serving.requests} requests"):
        began = time.perf_counter()
        answers = asyncio.run(_serve(job, profiled, config, trace))
        seconds = time.perf_counter() - began
    tokens = sum(answer.tokens for answer in answers)
    rows = [
        (number, answer.mode, answer.tokens, 1e3 * answer.first, 1e3 * answer.last)
        for number, answer in enumerate(answers)
    ]
    table = ReportTable(
        "Requests to the server",
        f"Sent at once; {config.max_active} take turns, a round each. Measured from arrival; together "
        f"{tokens / seconds:,.0f} tokens a second.",
        ("request", "mode", "tokens", "ms to the first", "ms to the last"),
        tuple(rows),
    )
    return Findings(tables=[table], notes=list(profiled.notes), timeline=trace.timeline())


async def _serve(
    job: ProfileJob, profiled: Profiled, config: ServeConfig, trace: RoundTrace
) -> list[_Answer]:
    settings, engine = job.profile.serving, profiled.engine
    modes = [profiled.modes[number % len(profiled.modes)] for number in range(settings.requests)]
    scheduler = Scheduler(
        engine,
        Metrics(engine.runner.exit_layers),
        max_active=config.max_active,
        max_waiting=settings.requests,
        trace=trace,
    )
    jobs = [
        Job([engine.prepare(TextRequest(profiled.prompt, max_tokens=settings.tokens, mode=mode))])
        for mode in modes
    ]
    for each in jobs:
        scheduler.submit(each)
    scheduler.start()
    try:
        return await asyncio.gather(*map(_drain, jobs))
    finally:
        await asyncio.to_thread(scheduler.stop)


async def _drain(job: Job) -> _Answer:
    first, tokens = None, 0
    async for piece in job:
        first = time.perf_counter() - job.arrived if first is None else first
        tokens = piece.chunk.completion_tokens
    last = time.perf_counter() - job.arrived
    return _Answer(job.mode, last if first is None else first, last, tokens)
