"""The profile page: all in one file, nothing from a network, escaped; and a browser that runs it."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from lit_eff.profiling.markup import Markup, element, join
from lit_eff.profiling.page import MAX_CARDS, profile_page
from lit_eff.profiling.report import ProfileReport, ReportTable
from lit_eff.profiling.timeline import Timeline
from lit_eff.profiling.traffic import Number
from lit_eff.profiling.write import png
from tests.profiling.browser import needs_browser, rendered
from tests.profiling.sample_run import HOSTILE, record, report, timeline


def figure() -> Figure:
    drawn = Figure(figsize=(2, 1))
    drawn.add_subplot().plot([1, 2])
    return drawn


@pytest.fixture(scope="module")
def page() -> str:
    return profile_page(report(), timeline(), {"roofline": png(figure())})


class Reader(HTMLParser):
    """Every element with its attributes, and the text of each tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    for tag, attributes in Reader(page).elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,")), (tag, value)
    assert "@import" not in page
    assert not re.search(r"url\(|fetch\(|XMLHttpRequest|https?://", page)
    policies = [attributes.get("content") or "" for tag, attributes in Reader(page).elements if tag == "meta"]
    assert any(policy.startswith("default-src 'none'; img-src data:;") for policy in policies)


def test_hostile_text_stays_text(page: str) -> None:
    """It is in names, notes, table cells and source lines."""
    assert HOSTILE not in page
    reader = Reader(page)
    assert sum(tag == "script" for tag, _ in reader.elements) == 1  # the page's own
    assert sum(HOSTILE in text for text in reader.texts) >= 4


def test_figure_is_within(page: str) -> None:
    (source,) = [attributes["src"] for tag, attributes in Reader(page).elements if tag == "img"]
    assert source is not None
    assert base64.b64decode(source.partition(",")[2])[:8] == b"\x89PNG\r\n\x1a\n"


def test_numbers_stand_side_by_side_with_their_sources(page: str) -> None:
    assert re.search(r'<td class="number counted">750<span class="detail">interpreter</span></td>', page)
    assert re.search(r'<td class="number modelled">750<span class="detail">formula</span></td>', page)
    assert "to the byte" in page
    assert re.search(r'class="unavailable" colspan="3">unavailable<span class="detail">no NVML', page)
    assert '<td class="number measured" title="measured" data-value="800">800</td>' in page
    assert 'style="--share: 87.5%"' in page  # line 9: 350 of 400 bytes
    assert page.index('data-value="9">9<') < page.index('data-value="12">12<')  # in the order of the file
    assert "ncu may not read counters" in page
    assert "Sorted | by bytes." in page
    assert "<th>nothing</th>" not in page  # a column without values


def test_a_difference_is_an_alarm() -> None:
    counted = record()
    wrong = {**counted.numbers, "read_bytes": (Number(751, "counted"), Number(750, "modelled"))}
    page = profile_page(replace(report(), records=(replace(counted, numbers=wrong),)), Timeline(), {})
    assert '<td class="alarm">DIFFERENT</td>' in page


def test_timeline_is_drawn_and_summed(page: str) -> None:
    assert len(re.findall('<rect class="span"', page)) == 12
    assert "flash_forward_kernel: 0.4 ms" in page
    assert re.search(r"<td>flash_forward_kernel</td>.*?>3<.*?>1\.2<.*?>0\.4<", page)
    assert "at most 302" in page


def test_a_large_report_stays_under_5_mb() -> None:
    """Figures beyond the bound and kernels beyond the first 200 are elsewhere, which the page says."""
    base = report()
    noise = Figure(figsize=(12, 12), dpi=110)
    import numpy as np

    noise.add_axes((0, 0, 1, 1)).imshow(np.random.default_rng(0).random((1300, 1300, 3)))
    records = tuple(replace(record(f"kernel {i}"), lines=base.records[0].lines * 5) for i in range(250))
    page = profile_page(
        replace(base, records=records), timeline(3000), {"one": png(noise), "two": png(figure())}
    )
    assert len(page) < 5_000_000
    assert "in figures/one.png, too large for this page" in page
    assert page.count("data:image/png") == 1
    assert f"{250 - MAX_CARDS} more records are in profile.json" in page
    assert page.count("<details") == MAX_CARDS


def test_an_empty_report_is_a_page() -> None:
    page = profile_page(ProfileReport("x", {}), Timeline(), {})
    assert "<h1>x</h1>" in page
    assert "<h2" not in page


def test_what_all_rows_share_is_said_beneath() -> None:
    rows = tuple((name, 7, None, value) for name, value in (("a", 1.5), ("b", None), ("c", 3)))
    table = ReportTable("t", "Caption.", ("name", "N", "nothing", "bytes"), rows).folded()
    assert table.columns == ("name", "bytes")
    assert table.rows == (("a", 1.5), ("b", None), ("c", 3))
    assert table.caption == "Caption. All rows: N 7."
    assert table.numeric == (False, True)
    two = ReportTable("t", "Caption.", ("name", "N"), (("a", 7), ("b", 7)))
    assert two.folded() == two


def test_markup_escapes_all_but_markup() -> None:
    assert element("td", "<b>", 1, class_='a"b', hidden=True, title=None) == (
        '<td class="a&quot;b" hidden>&lt;b&gt;1</td>'
    )
    assert join(Markup("<b>"), None, "<") == "<b>&lt;"


CLICKS = """
<script>
const field = document.querySelector("input[data-filters]");
field.value = "flash 2048";
field.dispatchEvent(new Event("input"));
const tables = [...document.querySelectorAll("table.sortable")];
const table = tables.find((each) => each.textContent.includes("layers.2"));
const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent).join(" ");
const seen = [];
for (const column of [1, 1, 0]) { table.tHead.rows[0].cells[column].firstChild.click(); seen.push(names()); }
document.title = seen.join(" / ");
</script>
"""


@needs_browser
def test_a_browser_renders_sorts_and_filters(page: str, tmp_path: Path) -> None:
    """Its console stays empty: no error, and nothing that the page's own policy had to refuse."""
    file = tmp_path / "profile.html"
    file.write_text(page.replace("</body>", CLICKS + "</body>"), encoding="utf-8")
    dom, log = rendered(file.as_uri(), tmp_path)
    assert "CONSOLE" not in log, log
    assert 'data-ready="yes"' in dom
    down = "layers.10 layers.2 head"
    assert f"<title>head layers.2 layers.10 / {down} / head layers.10 layers.2</title>" in dom
    cards = re.findall(r"<details([^>]*)>", dom)
    shown = [("2048" in card, "hidden" in card) for card in cards]
    assert shown == [(False, True), (True, False), (False, True)]
    assert "<b>flash_forward_kernel</b>" in dom
