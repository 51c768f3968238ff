"""What happened when: spans on tracks and sampled counters. Every trace format is written from this.

Times are seconds from the timeline's start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Value = int | float | str | bool


@dataclass(frozen=True)
class Span:
    """Something that took a while: a step, a module's forward, a kernel, a decoding round.

    ``track`` is ``process/thread`` as a viewer groups them, as in ``GPU 0/stream 7``. Spans of one track are
    disjoint or nested. ``details`` are shown when the span is clicked.
    """

    name: str
    track: str
    start: float
    duration: float
    details: Mapping[str, Value] = field(default_factory=dict)

    @property
    def gpu(self) -> int | None:
        """Of a track such as ``GPU 0/stream 7``; None on the host."""
        name, _, number = self.track.partition("/")[0].partition(" ")
        return int(number) if name == "GPU" and number.isdigit() else None


@dataclass(frozen=True)
class Sample:
    """The value of a counter (``HBM bytes/s``, ``power, W``, ``allocated, B``) from a time on."""

    counter: str
    time: float
    value: float


@dataclass
class Timeline:
    """Spans and samples in any order. ``dropped`` of them were left out to stay within a bound."""

    spans: list[Span] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    dropped: int = 0
