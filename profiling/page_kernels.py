"""Kernels on the profile page: an overview, then a card each, every number by each of its sources."""

from __future__ import annotations

from collections.abc import Sequence

from lit_eff.profiling.markup import Markup, element, join
from lit_eff.profiling.page_tables import sortable, text_of
from lit_eff.profiling.tensorboard import with_baseline
from lit_eff.profiling.titles import shape_text, titles
from lit_eff.profiling.traffic import BEST, UNITS, KernelTraffic, LineTraffic, Number

Shown = tuple[str | float | int | None, str]  # a value and its source

_OVERVIEW = (
    "kernel",
    "counted, B",
    "modelled, B",
    "counted = modelled",
    "DRAM, B",
    "baseline / this",
    "seconds",
    "occupancy",
)


def kernel_overview(records: Sequence[KernelTraffic]) -> Markup:
    """A row a record, without columns that no record fills."""
    rows = [_overview(record, name) for record, name in zip(records, titles(records), strict=True)]
    kept = [i for i in range(len(_OVERVIEW)) if any(row[i][0] is not None for row in rows)]
    cells = [[_cell(*row[i]) for i in kept] for row in rows]
    texts = [f"{record.kernel} {shape_text(record.shape)}" for record in records]
    return sortable([_OVERVIEW[i] for i in kept], [i not in (0, 3) for i in kept], cells, texts)


def _overview(record: KernelTraffic, title: str) -> list[Shown]:
    counted, modelled = record.hbm_bytes("counted"), record.hbm_bytes("modelled")
    both = counted is not None and modelled is not None
    equal = ("to the byte", "") if record.counted_equals_modelled else ("DIFFERENT", "alarm")
    occupancy = next(iter(record.numbers.get("occupancy", ())), Number(None, "unavailable"))
    return [
        (title, ""),
        (counted, "counted"),
        (modelled, "modelled"),
        equal if both else (None, ""),
        (record.hbm_bytes("measured"), "measured"),
        (record.baseline_ratio, record.compared[2] if record.compared else ""),
        (record.get("seconds", "measured"), "measured"),
        (occupancy.value, occupancy.source),
    ]


def _cell(value: str | float | int | None, source: str) -> Markup:
    if isinstance(value, str):
        return element("td", value, class_=source or None)
    kind = "number" if value is None else f"number {source}"
    return element("td", text_of(value), class_=kind, title=source or None, data_value=value)


def kernel_cards(records: Sequence[KernelTraffic]) -> Markup:
    """A card a record: its numbers, then its parts', its baseline's, and its source lines."""
    return join(
        *(
            element(
                "details",
                element("summary", element("b", record.kernel), element("span", shape, class_="shape")),
                *(_numbers(each, headed=each is not record) for each in with_baseline(record)),
                _lines(record.lines) if record.lines else None,
                data_text=f"{record.kernel} {shape}".lower(),
            )
            for record in records
            for shape in [shape_text(record.shape)]
        )
    )


def _numbers(record: KernelTraffic, *, headed: bool) -> Markup:
    """Quantities down, sources across; what nobody knows says why over all columns."""
    rows = []
    for quantity, numbers in record.numbers.items():
        head = element("td", quantity.replace("_", " "), element("span", UNITS[quantity], class_="detail"))
        known = [number for number in numbers if number.source != "unavailable"]
        if known:
            cells = [_by_source([each for each in known if each.source == source]) for source in BEST]
        else:
            why = element("span", numbers[0].detail, class_="detail")
            cells = [element("td", "unavailable", why, class_="unavailable", colspan=3)]
        rows.append(element("tr", head, *cells))
    heads = [element("th", "quantity"), *(element("th", source, class_="number") for source in BEST)]
    table = element("table", element("thead", element("tr", *heads)), element("tbody", *rows))
    title = element("h3", record.kernel) if headed else None
    return join(title, element("div", table, class_="wide"))


def _by_source(numbers: Sequence[Number]) -> Markup:
    shown = [
        join(text_of(number.value), element("span", number.detail, class_="detail")) for number in numbers
    ]
    return element("td", *shown, class_=f"number {numbers[0].source}" if numbers else "number")


def _lines(lines: Sequence[LineTraffic]) -> Markup:
    """Source lines in the order of the file; the bar behind the bytes is their share of the largest."""
    most = max((line.requested_bytes for line in lines), default=0) or 1
    rows = [
        [
            element("td", line.line, class_="number", data_value=line.line),
            element("td", line.text.strip(), class_="code"),
            element("td", line.tensor),
            element("td", line.kind),
            element(
                "td",
                text_of(line.requested_bytes),
                class_="number bar",
                style=f"--share: {100 * line.requested_bytes / most:.1f}%",
                data_value=line.requested_bytes,
            ),
            element("td", text_of(line.sector_bytes), class_="number", data_value=line.sector_bytes),
            element("td", text_of(line.masked_lanes), class_="number", data_value=line.masked_lanes),
        ]
        for line in sorted(lines, key=lambda line: (line.file, line.line))
    ]
    columns = ("line", "source", "tensor", "kind", "requested, B", "sectors, B", "masked lanes")
    numeric = [True, False, False, False, True, True, True]
    return join(element("h3", "By source line (counted)"), sortable(columns, numeric, rows))
