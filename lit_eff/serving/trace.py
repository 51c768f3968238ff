"""The rounds a server decoded last, as spans in a ring: for ``GET /trace`` and for a file at the end."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from lit_eff.profiling.rounds import DecodedRound, round_span
from lit_eff.profiling.timeline import Sample, Span, Timeline
from lit_eff.profiling.trace_json import write_perfetto

MONITOR = "serving/monitor"


class RoundTrace:
    """Keeps the last rounds, each on its request's track, and how many requests were active and waiting.

    Methods may be called from any thread.

    Args:
        exit_layers: of the model.
        most: spans kept; older ones make room.
    """

    def __init__(self, exit_layers: Sequence[int], most: int) -> None:
        self._exit_layers = exit_layers
        self._zero = time.perf_counter()
        self._lock = threading.Lock()
        self._spans: deque[Span] = deque(maxlen=most)
        self._samples: deque[Sample] = deque(maxlen=2 * most)
        self._seen = 0

    def waited(self, job: int, mode: str, arrived: float) -> None:
        """A request takes its first turn; ``arrived`` is its time.perf_counter."""
        now = time.perf_counter()
        self._keep(Span("waiting", _track(job), arrived - self._zero, now - arrived, {"mode": mode}))

    def round(
        self, job: int, mode: str, prompt: int, one: DecodedRound, *, active: int, waiting: int
    ) -> None:
        """A round that just ended, of a request's prompt by its number."""
        end = time.perf_counter() - self._zero
        self._keep(
            round_span(one, mode, self._exit_layers, _track(job), end, prompt=prompt),
            Sample("active requests", end, active),
            Sample("waiting requests", end, waiting),
        )

    def monitored(self, began: float) -> None:
        """A round run in full for the monitor, begun at ``began`` by time.perf_counter."""
        now = time.perf_counter()
        self._keep(Span("full run for the monitor", MONITOR, began - self._zero, now - began))

    def timeline(self) -> Timeline:
        """What is kept now."""
        with self._lock:
            spans = list(self._spans)
            return Timeline(spans, list(self._samples), self._seen - len(spans))

    def save(self, path: Path) -> None:
        """What is kept now as Perfetto's JSON, gzipped."""
        write_perfetto(self.timeline(), path)

    def gzipped(self) -> bytes:
        """The content of the file that :meth:`save` would write."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json.gz"
            self.save(path)
            return path.read_bytes()

    def _keep(self, span: Span, *samples: Sample) -> None:
        with self._lock:
            self._seen += 1
            self._spans.append(span)
            self._samples.extend(samples)


def _track(job: int) -> str:
    return f"serving/request {job}"
