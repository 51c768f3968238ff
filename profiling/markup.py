"""Builds HTML whose every text and attribute is escaped: what is not :class:`Markup` is plain text."""

from __future__ import annotations

from html import escape

VOID = {"img", "input", "meta"}


class Markup(str):
    """HTML as it is to stand in the page."""

    __slots__ = ()


def element(tag: str, *content: object, **attributes: object) -> Markup:
    """``<tag attribute="...">content</tag>``.

    Attributes that are None or False are left out, True stands for itself; a trailing underscore is cut
    (``class_``), other underscores become hyphens (``data_value``).
    """
    shown = []
    for name, value in attributes.items():
        name = name.removesuffix("_").replace("_", "-")
        if value is True:
            shown.append(f" {name}")
        elif value is not None and value is not False:
            shown.append(f' {name}="{escape(str(value))}"')
    head = f"<{tag}{''.join(shown)}>"
    return Markup(head if tag in VOID else f"{head}{join(*content)}</{tag}>")


def join(*content: object) -> Markup:
    """One after the other; None is nothing."""
    return Markup(
        "".join(
            each if isinstance(each, Markup) else escape(str(each)) for each in content if each is not None
        )
    )
