"""Makes one HTML file of a profile that works offline: nothing in it is loaded from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lit_eff.profiling.markup import Markup, element, join
from lit_eff.profiling.page_kernels import kernel_cards, kernel_overview
from lit_eff.profiling.page_tables import sortable
from lit_eff.profiling.page_timeline import timeline_summary
from lit_eff.profiling.report import ProfileReport, ReportTable, text_of
from lit_eff.profiling.timeline import Timeline

if TYPE_CHECKING:
    pass

MAX_PICTURE_BYTES = 3_000_000  # encoded, so that the page stays under 5 MB
MAX_CARDS = 200
_SOURCES = {
    "measured": "on hardware",
    "counted": "in Triton's interpreter, or by its compiler",
    "modelled": "by formula",
    "unavailable": "with the reason",
}
# A browser that honours it cannot load anything, whatever a report holds.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def profile_page(report: ProfileReport, timeline: Timeline, pictures: Mapping[str, bytes]) -> str:
    """The page's text. ``pictures`` are the figures, as PNG.

    Pictures beyond 3 MB, and the smallest kernels beyond 200 records, are named and left to the run folder's
    other files.
    """
    sections = {
        "Kernels": _kernels(report),
        "Figures": _figures(pictures),
        "Tables": join(*map(_table, report.tables)),
        "Timeline": timeline_summary(timeline),
    }
    shown = {title: content for title, content in sections.items() if content}
    here = Path(__file__).parent
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{report.name}: profile"),
        element("style", Markup(style)),
    )
    body = element(
        "body",
        element("h1", report.name),
        _legend(),
        element("nav", *(element("a", title, href=f"#{title.lower()}") for title in shown)),
        element("dl", *(join(element("dt", k), element("dd", v)) for k, v in report.environment.items())),
        element("ul", *(element("li", note) for note in report.notes), class_="notes")
        if report.notes
        else None,
        *(join(element("h2", title, id=title.lower()), content) for title, content in shown.items()),
        element("script", Markup(script)),
    )
    return "<!DOCTYPE html>\n" + element("html", head, body, lang="en")


def _legend() -> Markup:
    kinds = [join(element("b", name, class_=name), f" {what}. ") for name, what in _SOURCES.items()]
    return element("p", "Every number says where it comes from. ", *kinds)


def _kernels(report: ProfileReport) -> Markup | None:
    if not report.records:
        return None
    left_out = len(report.records) - MAX_CARDS
    return join(
        element("p", element("input", type="search", placeholder="filter kernels", data_filters="cards")),
        element(
            "div",
            kernel_overview(report.records),
            kernel_cards(report.records[:MAX_CARDS]),
            element("p", f"{left_out} more records are in profile.json.") if left_out > 0 else None,
            id="cards",
        ),
    )


def _figures(pictures: Mapping[str, bytes]) -> Markup | None:
    room, shown = MAX_PICTURE_BYTES, []
    for name, picture in pictures.items():
        encoded = base64.b64encode(picture).decode()
        caption = name.replace("_", " ")
        if len(encoded) > room:
            shown.append(element("p", f"{caption}: in figures/{name}.png, too large for this page"))
            continue
        room -= len(encoded)
        image = element("img", src=f"data:image/png;base64,{encoded}", alt=caption)
        shown.append(element("figure", image, element("figcaption", caption)))
    return join(*shown) if shown else None


def _table(table: ReportTable) -> Markup:
    table = table.folded()
    cells = [
        [
            element("td", text_of(value), class_="number" if right else None, data_value=value)
            for value, right in zip(row, table.numeric, strict=True)
        ]
        for row in table.rows
    ]
    shown = sortable(table.columns, table.numeric, cells)
    return join(element("h3", table.title), element("p", table.caption), shown)
