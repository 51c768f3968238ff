"""The timeline on the profile page: its tracks drawn, its counters as curves, and where the time went."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from lit_eff.profiling.markup import Markup, element, join
from lit_eff.profiling.page_tables import sortable, text_of
from lit_eff.profiling.timeline import Sample, Span, Timeline

MOST_SPANS = 1500  # drawn, the longest
MOST_SAMPLES = 400  # of a counter
MOST_NAMES = 40
WIDTH, LABEL, ROW, CURVE = 1100, 190, 20, 52


def timeline_summary(timeline: Timeline) -> Markup | None:
    """None of an empty timeline."""
    if not timeline.spans and not timeline.samples:
        return None
    times = [span.start for span in timeline.spans] + [sample.time for sample in timeline.samples]
    ends = [span.start + span.duration for span in timeline.spans]
    began, ended = min(times), max([*ends, *times])
    scale = _Scale(began, max(ended - began, 1e-9))
    left_out = [f"{timeline.dropped:,} spans and samples were not kept"] if timeline.dropped else []
    if len(timeline.spans) > MOST_SPANS:
        left_out.append(f"the longest {MOST_SPANS:,} of {len(timeline.spans):,} spans are drawn")
    about = "; ".join([f"{1e3 * (ended - began):,.4g} ms, left to right", *left_out])
    return join(element("p", f"{about}."), _drawing(timeline, scale), _names(timeline.spans))


class _Scale:
    """From seconds to the drawing's pixels."""

    def __init__(self, began: float, seconds: float) -> None:
        self.began, self.per_second = began, (WIDTH - LABEL) / seconds

    def x(self, time: float) -> float:
        return round(LABEL + (time - self.began) * self.per_second, 2)


def _drawing(timeline: Timeline, scale: _Scale) -> Markup:
    tracks: dict[str, list[Span]] = defaultdict(list)
    for span in sorted(timeline.spans, key=lambda span: -span.duration)[:MOST_SPANS]:
        tracks[span.track].append(span)
    counters: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(timeline.samples, key=lambda sample: sample.time):
        counters[sample.counter].append(sample)
    shapes, top = [], 0
    for track in sorted(tracks):
        shapes += _track(track, tracks[track], top, scale)
        top += ROW
    for counter, samples in counters.items():
        shapes += _curve(counter, samples, top, scale)
        top += CURVE
    size: Mapping[str, object] = {"viewBox": f"0 0 {WIDTH} {top}", "width": WIDTH, "height": top}
    return element("div", element("svg", *shapes, **size), class_="wide")


def _track(name: str, spans: Sequence[Span], top: int, scale: _Scale) -> list[Markup]:
    bars = [
        element(
            "rect",
            element("title", f"{span.name}: {1e3 * span.duration:,.4g} ms"),
            class_="span",
            x=scale.x(span.start),
            y=top + 3,
            width=max(0.5, round(span.duration * scale.per_second, 2)),
            height=ROW - 6,
        )
        for span in spans
    ]
    return [element("text", name[-30:], x=0, y=top + 14), *bars]


def _curve(name: str, samples: Sequence[Sample], top: int, scale: _Scale) -> list[Markup]:
    """From zero (or below) to the largest value, which the label tells."""
    thinned = samples[:: 1 + len(samples) // MOST_SAMPLES]
    most = max(sample.value for sample in samples)
    least = min(0.0, *(sample.value for sample in samples))
    height = (CURVE - 12) / ((most - least) or 1)
    points = [
        f"{scale.x(sample.time)},{top + CURVE - 4 - (sample.value - least) * height:.1f}"
        for sample in thinned
    ]
    base = top + CURVE - 4
    return [
        element("text", name[-30:], x=0, y=top + 24),
        element("text", f"at most {most:,.4g}", x=0, y=top + 38),
        element("line", x1=LABEL, x2=WIDTH, y1=base, y2=base),
        element("polyline", points=" ".join(points)),
    ]


def _names(spans: Sequence[Span]) -> Markup | None:
    """Total time by track and name, the longest first."""
    totals: dict[tuple[str, str], list[float]] = defaultdict(list)
    for span in spans:
        totals[span.track, span.name].append(span.duration)
    if not totals:
        return None
    longest = sorted(totals.items(), key=lambda each: -sum(each[1]))
    rows = [
        [
            element("td", track),
            element("td", name),
            *(
                element("td", text_of(value), class_="number", data_value=value)
                for value in (len(each), 1e3 * sum(each), 1e3 * sum(each) / len(each))
            ),
        ]
        for (track, name), each in longest[:MOST_NAMES]
    ]
    columns = ("track", "span", "calls", "total ms", "mean ms")
    more = len(longest) - len(rows)
    note = element("p", f"{more:,} more names are in the trace files.") if more else None
    return join(sortable(columns, [False, False, True, True, True], rows), note)
