"""Tables of the profile page: numbers to the right, sorted by a click where the page's script runs."""

from __future__ import annotations

from collections.abc import Sequence

from lit_eff.profiling.markup import Markup, element


def sortable(
    columns: Sequence[str],
    numeric: Sequence[bool],
    rows: Sequence[Sequence[Markup]],
    texts: Sequence[str] | None = None,
) -> Markup:
    """A table of ``rows`` of ``td`` cells.

    Args:
        numeric: of each column.
        texts: of each row, what a filter looks for.
    """
    heads = [
        element("th", column, class_="number" if right else None)
        for column, right in zip(columns, numeric, strict=True)
    ]
    found: Sequence[str | None] = texts or [None] * len(rows)
    body = [
        element("tr", *row, data_text=text.lower() if text is not None else None)
        for row, text in zip(rows, found, strict=True)
    ]
    table = element(
        "table", element("thead", element("tr", *heads)), element("tbody", *body), class_="sortable"
    )
    return element("div", table, class_="wide")


def text_of(value: str | int | float | None) -> str:
    """Plain values: thousands by commas, floats to six digits, a dash for what is missing."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"
