"""Writes a timeline as ``HOST.xplane.pb``, which TensorBoard's xprof plugin reads.

Messages and field numbers are those of tsl/profiler/protobuf/xplane.proto; names of planes, lines and stats
those of xla/tsl/profiler/utils/xplane_schema.cc. A GPU is a plane with a line a stream, everything else is on
the host's plane. Times are picoseconds within a line.
"""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lit_eff.files import atomic_path
from lit_eff.profiling.bounded import fit
from lit_eff.profiling.protobuf import double, integer, message, text
from lit_eff.profiling.timeline import Sample, Span, Timeline, Value

MAX_BYTES = 32_000_000
_EVENT_BYTES = 16  # an event without its details, at most
HOST_PLANE = "/host:CPU"
COUNTERS = "_counters_"

# Shown in xprof's table of kernels, whose columns they are.
LAUNCH_DETAILS = ("registers_per_thread", "shared_memory_bytes", "grid", "block", "occupancy")


def write_xplane(
    timeline: Timeline, folder: Path, run: str, *, max_bytes: int = MAX_BYTES
) -> tuple[Path, int]:
    """``plugins/profile/RUN/HOST.xplane.pb`` in ``folder``, TensorBoard's logdir.

    Spans of ``GPU n/stream m`` tracks are kernels; their details ``registers_per_thread``,
    ``shared_memory_bytes``, ``grid`` and ``block`` (as ``x,y,z``) and ``occupancy`` (0 to 1) make up
    xprof's kernel table.

    Returns:
        the file, and how many spans and samples were left out to stay within ``max_bytes``.
    """
    kept = fit(timeline, _span_bytes, lambda sample: _EVENT_BYTES + 16, max_bytes)
    zero = min([0.0, *(span.start for span in kept.spans), *(each.time for each in kept.samples)])
    planes: dict[str, _Plane] = {HOST_PLANE: _Plane(HOST_PLANE)}
    lines: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for span in kept.spans:
        plane = HOST_PLANE if span.gpu is None else f"/device:GPU:{span.gpu}"
        planes.setdefault(plane, _Plane(plane))
        name = span.track if span.gpu is None else f"Stream #{span.track.partition('/stream ')[2]}"
        lines[plane, name].append(span)
    for (plane, name), spans in lines.items():
        planes[plane].add_spans(name, spans, zero)
    planes[HOST_PLANE].add_samples(kept.samples, zero)
    host = socket.gethostname()
    content = b"".join(
        message(1, plane.encode(number)) for number, plane in enumerate(planes.values(), start=1)
    )
    if kept.dropped:
        content += text(3, f"{kept.dropped} spans and samples were left out")
    path = folder / "plugins" / "profile" / run / f"{host}.xplane.pb"
    with atomic_path(path) as temporary:
        temporary.write_bytes(content + text(4, host))
    return path, kept.dropped


@dataclass
class _Plane:
    """Lines of events; names are kept once and referred to by number."""

    name: str
    lines: list[bytes] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=dict)
    stats: dict[str, int] = field(default_factory=dict)

    def add_spans(self, name: str, spans: Sequence[Span], zero: float) -> None:
        on_device = self.name != HOST_PLANE
        self._add_line(
            name,
            [
                self._event(span.name, span.start - zero, span.duration, _stats(span.details, on_device))
                for span in spans
            ],
        )

    def add_samples(self, samples: Sequence[Sample], zero: float) -> None:
        if samples:
            self._add_line(
                COUNTERS,
                [
                    self._event(each.counter, each.time - zero, 0.0, {"counter_value": float(each.value)})
                    for each in samples
                ],
            )

    def encode(self, number: int) -> bytes:
        names = [(4, self.events), (5, self.stats)]
        return b"".join(
            [
                integer(1, number),
                text(2, self.name),
                *(message(3, line) for line in self.lines),
                *(
                    message(key, integer(1, each) + message(2, integer(1, each) + text(2, name)))
                    for key, table in names
                    for name, each in table.items()
                ),
            ]
        )

    def _add_line(self, name: str, events: Sequence[bytes]) -> None:
        head = integer(1, len(self.lines) + 1) + text(2, name)
        self.lines.append(head + b"".join(message(4, event) for event in events))

    def _event(self, name: str, start: float, duration: float, stats: Mapping[str, Value]) -> bytes:
        number = self.events.setdefault(name, len(self.events) + 1)
        head = integer(1, number) + integer(2, _ps(start)) + integer(3, _ps(duration))
        return head + b"".join(message(4, self._stat(name, value)) for name, value in stats.items())

    def _stat(self, name: str, value: Value) -> bytes:
        number = integer(1, self.stats.setdefault(name, len(self.stats) + 1))
        if isinstance(value, str):
            return number + text(5, value)
        return number + (double(2, value) if isinstance(value, float) else integer(4, value))


def _stats(details: Mapping[str, Value], on_device: bool) -> dict[str, Value]:
    """A kernel's launch in the one string that xprof takes apart, all other details as they are."""
    if not on_device or not all(name in details for name in LAUNCH_DETAILS):
        return dict(details)
    launch = (
        f"regs:{details['registers_per_thread']} "
        f"static_shared:0 dynamic_shared:{details['shared_memory_bytes']} "
        f"grid:{details['grid']} block:{details['block']} occ_pct:{100 * float(details['occupancy']):g}"
    )
    others = {name: value for name, value in details.items() if name not in LAUNCH_DETAILS}
    return {**others, "kernel_details": launch}


def _span_bytes(span: Span) -> int:
    """At most: an event's head, its name once, and its details with their names."""
    details = sum(len(name) + len(str(value).encode()) + 24 for name, value in span.details.items())
    return 2 * _EVENT_BYTES + len(span.name.encode()) + 64 + details


def _ps(seconds: float) -> int:
    return round(seconds * 1e12)
