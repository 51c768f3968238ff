"""Writes a timeline as Chrome trace events: for Perfetto, and for TensorBoard's classic PyTorch profiler.

The format is Google's "Trace Event Format"; Perfetto and chrome://tracing read it gzipped. The classic plugin
(torch-tb-profiler) asks in addition for torch.profiler's categories and file names. All times are
microseconds.
"""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lit_eff.files import atomic_path
from lit_eff.profiling.bounded import fit
from lit_eff.profiling.timeline import Sample, Span, Timeline
from lit_eff.profiling.torch_trace import STEP, STEPS

MAX_BYTES = 32_000_000  # of JSON, before compression: what a browser still opens at once
_OVERHEAD = 4096  # what surrounds the events
# GPUs and their streams keep their numbers, as in torch.profiler's traces; the counters' process, then all
# others, are numbered from here on.
_COUNTERS = 1000

# What the classic plugin calls the details that spans of kernels carry.
CLASSIC_DETAILS = {
    "registers_per_thread": "registers per thread",
    "shared_memory_bytes": "shared memory",
    "grid": "grid",
    "block": "block",
    "occupancy": "est. achieved occupancy %",
}


def write_perfetto(timeline: Timeline, path: Path, *, max_bytes: int = MAX_BYTES) -> int:
    """Spans by process and thread, counters as tracks of their own.

    Args:
        path: as in ``trace.perfetto.json.gz``; open it at ui.perfetto.dev (which keeps it in the browser).
        max_bytes: of JSON; the file is smaller. The shortest spans are left out beyond it.

    Returns:
        how many spans and samples were left out, which the trace tells too.
    """
    return _write(timeline, path, max_bytes, lambda span: {**_complete(span), "args": dict(span.details)})


def write_classic(
    timeline: Timeline, folder: Path, time_ms: int, *, rank: int = 0, max_bytes: int = MAX_BYTES
) -> tuple[Path, int]:
    """``HOST_RANK.TIME.pt.trace.json.gz``, which the plugin takes for a trace of torch.profiler.

    GPU tracks hold its kernels, all other spans are its operators.

    Returns:
        the file, and how many spans and samples were left out, which the trace tells too.
    """
    path = folder / f"{socket.gethostname()}_{rank}.{time_ms}.pt.trace.json.gz"
    return path, _write(timeline, path, max_bytes, _classic)


def _write(
    timeline: Timeline, path: Path, max_bytes: int, encode: Callable[[Span], Mapping[str, Any]]
) -> int:
    tracks = _Tracks(timeline.spans)
    zero = min([0.0, *(span.start for span in timeline.spans), *(each.time for each in timeline.samples)])

    def span_text(span: Span) -> str:
        return json.dumps({**encode(span), **tracks.of(span), "ts": _us(span.start - zero)})

    def sample_text(sample: Sample) -> str:
        where = {"ph": "C", "name": sample.counter, "pid": _COUNTERS, "ts": _us(sample.time - zero)}
        return json.dumps({**where, "args": {"value": sample.value}})

    names = [json.dumps(event) for event in tracks.names()]
    room = max_bytes - _OVERHEAD - sum(len(text) + 2 for text in names)
    kept = fit(
        timeline,
        lambda span: len(span_text(span).encode()) + 2,
        lambda sample: len(sample_text(sample).encode()) + 2,
        max(0, room),
    )
    texts = [*names, *map(span_text, kept.spans), *map(sample_text, kept.samples)]
    if kept.dropped:
        name = f"{kept.dropped} spans and samples were left out"
        texts.append(json.dumps({"ph": "i", "s": "g", "name": name, "pid": _COUNTERS, "tid": 0, "ts": 0}))
    with atomic_path(path) as temporary, gzip.open(temporary, "wt", encoding="utf-8") as file:
        file.write(
            f'{{"schemaVersion": 1, "deviceProperties": [], "otherData": {{"dropped": {kept.dropped}}},\n'
        )
        file.write('"traceEvents": [\n' + ",\n".join(texts) + "\n]}\n")
    return kept.dropped


class _Tracks:
    """Numbers for the processes and threads of ``process/thread`` tracks, in order of appearance."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._numbers: dict[str, tuple[int, int]] = {}
        processes: dict[str, int] = {}
        for span in spans:
            process, _, _ = span.track.partition("/")
            next_free = _COUNTERS + 1 + len(processes)
            gpu = span.gpu
            pid = processes.setdefault(process, next_free if gpu is None else gpu)
            stream = span.track.partition("/stream ")[2]
            own = int(stream) if gpu is not None and stream.isdigit() else _COUNTERS + len(self._numbers)
            self._numbers.setdefault(span.track, (pid, own))

    def of(self, span: Span) -> dict[str, int]:
        pid, tid = self._numbers[span.track]
        return {"pid": pid, "tid": tid}

    def names(self) -> list[dict[str, Any]]:
        """The events that name them."""
        found: list[dict[str, Any]] = [_name("process_name", {"pid": _COUNTERS}, "counters")]
        for track, (pid, tid) in self._numbers.items():
            process, _, thread = track.partition("/")
            found.append(_name("process_name", {"pid": pid}, process))
            found.append(_name("thread_name", {"pid": pid, "tid": tid}, thread or process))
        return found


def _name(kind: str, where: Mapping[str, int], name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, **where, "args": {"name": name}}


def _complete(span: Span) -> dict[str, Any]:
    return {"ph": "X", "name": span.name, "dur": _us(span.duration)}


def _classic(span: Span) -> dict[str, Any]:
    """With the category, name and details by which the plugin knows steps, kernels and operators."""
    event = _complete(span)
    if span.track == STEPS and span.name.startswith("step ") and span.name[5:].isdigit():
        return {**event, "name": STEP + span.name[5:], "cat": "user_annotation", "args": {}}
    if span.gpu is None:
        return {**event, "cat": "cpu_op", "args": dict(span.details)}
    details: dict[str, Any] = {CLASSIC_DETAILS.get(name, name): value for name, value in span.details.items()}
    for name in ("grid", "block"):
        if name in details:
            details[name] = [int(size) for size in str(details[name]).split(",")]
    if "occupancy" in span.details:
        details[CLASSIC_DETAILS["occupancy"]] = 100 * float(span.details["occupancy"])
    where = {"device": span.gpu, "stream": span.track.partition("/stream ")[2]}
    return {**event, "cat": "kernel", "args": {**details, **where}}


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)
