"""Reads what torch.profiler wrote: which step, module and phase every operator or kernel worked for.

The format is that of ``torch.profiler.profile.export_chrome_trace``: events in microseconds, nested on host
threads, with autograd's sequence numbers and the host's launches joined to the device's kernels by number.
Module calls are ranges that :class:`lit_eff.profiling.modules.ModuleScopes` opened; steps are the profiler's.
"""

from __future__ import annotations

import gzip
import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_eff.errors import UserError
from lit_eff.profiling.scope import RANGE, Scope
from lit_eff.profiling.timeline import Span, Timeline, Value

STEP, UPDATE = "ProfilerStep#", "Optimizer.step#"
STEPS = "profiler/steps"  # the track of step spans
_LAUNCHES = {"cuda_runtime", "cuda_driver"}
_HOST = {"cpu_op", "user_annotation", *_LAUNCHES}
_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
_MICROSECOND = 1e-6


@dataclass(frozen=True)
class Work:
    """A kernel, or a host operator by itself: ``seconds`` leaves out what it called.

    ``step`` counts the trace's steps from 0; None before and after them. ``launch`` is what a kernel takes of
    the GPU, as the traces of :mod:`lit_eff.profiling.xplane` show it.
    """

    name: str
    scope: Scope
    step: int | None
    track: str
    start: float
    duration: float
    seconds: float
    launch: Mapping[str, Value]


@dataclass(frozen=True)
class TorchTrace:
    """Times are seconds from the first step on. ``on_device``: ``work`` holds kernels, else operators."""

    steps: tuple[Span, ...]
    modules: tuple[Span, ...]
    work: tuple[Work, ...]
    on_device: bool

    def timeline(self, most: int = 20_000) -> Timeline:
        """Steps, module calls and work as spans; the shortest are dropped beyond ``most``."""
        spans = [*self.steps, *self.modules, *(_span(work) for work in self.work)]
        spans.sort(key=lambda span: span.duration, reverse=True)
        return Timeline(spans=spans[:most], dropped=max(0, len(spans) - most))


@dataclass
class _Host:
    """An event of a host thread within those around it."""

    event: Mapping[str, Any]
    module: str | None
    backward: int | None  # sequence number of the node under evaluation; None outside the backward pass
    update: int | None  # index of the optimizer's step around it
    seconds: float  # by itself

    @property
    def end(self) -> float:
        return float(self.event["ts"] + self.event["dur"])


@dataclass
class _Hosts:
    """All host events, and what they tell of one another."""

    events: list[_Host] = field(default_factory=list)
    module_of_node: dict[int, str] = field(default_factory=dict)
    updates: list[Mapping[str, Any]] = field(default_factory=list)
    update_starts: dict[int, float] = field(default_factory=dict)

    def scope(self, host: _Host) -> Scope:
        if host.module is not None:
            return Scope(host.module, "forward" if host.backward is None else "recompute")
        if host.backward is not None:
            return Scope(self.module_of_node.get(host.backward, ""), "backward")
        updates = host.update is not None and host.event["ts"] >= self.update_starts[host.update]
        return Scope("", "optimizer" if updates else "forward")


def read_torch_trace(path: Path) -> TorchTrace:
    """A ``.pt.trace.json`` or ``.pt.trace.json.gz`` file.

    Raises:
        UserError: if it is none.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            return parse_torch_trace(json.load(file))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is no trace of torch.profiler: {type(error).__name__}: {error}") from error


def parse_torch_trace(trace: Mapping[str, Any]) -> TorchTrace:
    """The content of a trace file."""
    complete = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    marks = [event for event in complete if _is(event, "user_annotation", STEP)]
    marks.sort(key=lambda event: float(event["ts"]))
    zero = marks[0]["ts"] if marks else min((event["ts"] for event in complete), default=0.0)
    starts = [float(mark["ts"]) for mark in marks]

    def step_at(time: float) -> int | None:
        index = bisect_right(starts, time) - 1
        return index if index >= 0 and time < starts[index] + marks[index]["dur"] else None

    def span(event: Mapping[str, Any], name: str, track: str) -> Span:
        return Span(name, track, (event["ts"] - zero) * _MICROSECOND, event["dur"] * _MICROSECOND)

    hosts = _hosts([event for event in complete if event.get("cat") in _HOST])
    kernels = [event for event in complete if event.get("cat") in _DEVICE]
    launches = {
        host.event["args"]["correlation"]: host
        for host in hosts.events
        if host.event["cat"] in _LAUNCHES and "correlation" in host.event.get("args", {})
    }
    found = []
    for event in kernels:
        launch = launches.get(event.get("args", {}).get("correlation"))
        scope = hosts.scope(launch) if launch is not None else Scope("", "forward")
        step = step_at(launch.event["ts"] if launch is not None else event["ts"])
        found.append((event, scope, step, f"GPU {event['pid']}/stream {event['tid']}", event["dur"]))
    if not kernels:
        found = [
            (host.event, hosts.scope(host), step_at(host.event["ts"]), _thread(host.event), host.seconds)
            for host in hosts.events
            if host.event["cat"] == "cpu_op"
        ]
    return TorchTrace(
        steps=tuple(span(mark, f"step {index}", STEPS) for index, mark in enumerate(marks)),
        modules=tuple(
            span(host.event, host.event["name"].removeprefix(RANGE), _thread(host.event))
            for host in hosts.events
            if _is(host.event, "user_annotation", RANGE)
        ),
        work=tuple(
            Work(
                event["name"],
                scope,
                step,
                track,
                (event["ts"] - zero) * _MICROSECOND,
                event["dur"] * _MICROSECOND,
                seconds * _MICROSECOND,
                _launch(event.get("args", {})),
            )
            for event, scope, step, track, seconds in found
        ),
        on_device=bool(kernels),
    )


def _hosts(events: Sequence[Mapping[str, Any]]) -> _Hosts:
    threads = defaultdict(list)
    for event in events:
        threads[event["pid"], event["tid"]].append(event)
    hosts = _Hosts()
    for thread in threads.values():
        hosts.events += _nested(thread, hosts)
    # The operator that begins last with a number is the one that made the node.
    for host in sorted(hosts.events, key=lambda host: float(host.event["ts"])):
        number = host.event.get("args", {}).get("Sequence number")
        if number is not None and host.backward is None:
            hosts.module_of_node[number] = host.module or ""
    ends = sorted(host.end for host in hosts.events if host.backward is not None)
    for index, update in enumerate(hosts.updates):
        # A closure's forward and backward passes run inside the optimizer's step: the update follows them.
        last = bisect_right(ends, update["ts"] + update["dur"]) - 1
        hosts.update_starts[index] = max(update["ts"], ends[last] if last >= 0 else 0.0)
    return hosts


def _nested(events: list[Mapping[str, Any]], hosts: _Hosts) -> Iterator[_Host]:
    """One thread's events, each with the module, backward node and optimizer's step that it runs in."""
    events.sort(key=lambda event: (float(event["ts"]), -float(event["dur"])))
    around: list[_Host] = []
    for event in events:
        while around and around[-1].end <= event["ts"]:
            around.pop()
        outer = around[-1] if around else None
        host = _Host(
            event,
            outer.module if outer else None,
            outer.backward if outer else None,
            outer.update if outer else None,
            float(event["dur"]),
        )
        arguments = event.get("args", {})
        if _is(event, "user_annotation", RANGE):
            host.module = event["name"].removeprefix(RANGE)
        elif _is(event, "user_annotation", UPDATE):
            host.update = len(hosts.updates)
            hosts.updates.append(event)
        elif arguments.get("Fwd thread id"):  # zero or absent in the forward pass
            host.module, host.backward = None, arguments["Sequence number"]
        elif event["name"].startswith("autograd::engine::evaluate_function"):  # adds up a gradient: no number
            host.module, host.backward = None, -1
        if outer is not None:
            outer.seconds -= float(event["dur"])
        around.append(host)
        yield host


def _is(event: Mapping[str, Any], category: str, prefix: str) -> bool:
    return event.get("cat") == category and str(event["name"]).startswith(prefix)


def _thread(event: Mapping[str, Any]) -> str:
    return f"CPU/thread {event['tid']}"


def _launch(arguments: Mapping[str, Any]) -> dict[str, Value]:
    """Of a kernel's arguments; empty for a copy or an operator."""
    if "registers per thread" not in arguments:
        return {}
    return {
        "registers_per_thread": int(arguments["registers per thread"]),
        "shared_memory_bytes": int(arguments.get("shared memory", 0)),
        "grid": ",".join(map(str, arguments["grid"])),
        "block": ",".join(map(str, arguments["block"])),
        "occupancy": float(arguments.get("est. achieved occupancy %", 0)) / 100,
    }


def _span(work: Work) -> Span:
    details = {"module": work.scope.module, "phase": work.scope.phase, **work.launch}
    return Span(work.name, work.track, work.start, work.duration, details)
