"""Keeps a timeline within a bound: the shortest spans go first, and counters are sampled more sparsely."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import accumulate

from lit_eff.profiling.timeline import Sample, Span, Timeline

SAMPLES_SHARE = 0.25  # of the bound, at most


def fit(
    timeline: Timeline,
    span_bytes: Callable[[Span], int],
    sample_bytes: Callable[[Sample], int],
    max_bytes: int,
) -> Timeline:
    """The longest spans and evenly thinned counters whose encodings take at most ``max_bytes`` together.

    Spans come back in order of time; ``dropped`` counts all that is left out, now and before.
    """
    samples = timeline.samples
    while sum(map(sample_bytes, samples)) > SAMPLES_SHARE * max_bytes:
        samples = _every_other(samples)
    room = max_bytes - sum(map(sample_bytes, samples))
    spans = sorted(timeline.spans, key=lambda span: span.duration, reverse=True)
    kept = sum(total <= room for total in accumulate(map(span_bytes, spans)))
    left_out = len(spans) - kept + len(timeline.samples) - len(samples)
    in_time = sorted(spans[:kept], key=lambda span: (span.start, -span.duration))
    return Timeline(in_time, samples, timeline.dropped + left_out)


def _every_other(samples: list[Sample]) -> list[Sample]:
    """The first, third, fifth... of each counter; none of a counter with a single one."""
    counters = defaultdict(list)
    for sample in sorted(samples, key=lambda sample: sample.time):
        counters[sample.counter].append(sample)
    return [sample for each in counters.values() if len(each) > 1 for sample in each[::2]]
