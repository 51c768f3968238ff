"""jsonargparse's errors, nested and of several lines, as one line: the key and the nearest valid ones."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

from jsonargparse import ArgumentParser

from lit_eff.errors import nearest

_UNKNOWN = re.compile(
    r"unrecognized arguments: -*(?P<a>[\w.]+)|does not accept (?:option|nested key) '(?P<b>[\w.]+)'"
    r"|Option '(?P<c>[\w.]+)' is not accepted|unknown setting '(?P<d>[\w.]+)'"
)
_NOISE = re.compile(
    r"Does not validate against any|Subtypes:|Errors:|- Expected a <class 'NoneType'>"
    r"|Given value|Problem with given"
)


def option_names(parser: ArgumentParser) -> Iterator[str]:
    """Dotted names of a parser's options, its subcommands' included."""
    for action in parser._actions:
        yield action.dest
        if action.dest == "subcommand":
            subparsers: Any = action.choices or {}
            for subparser in subparsers.values():
                yield from option_names(subparser)


def explain(message: str, options: set[str], values: dict[str, Any]) -> str:
    """One line for a jsonargparse error.

    Args:
        message: its text.
        options: dotted names the parser knows.
        values: the configuration that was parsed; its ``class_path`` entries tell which names classes take.
    """
    unknown = [match.group(match.lastgroup or 0) for match in _UNKNOWN.finditer(message)]
    if not unknown:
        kept = [line.strip() for line in message.splitlines() if not _NOISE.search(line)]
        return " ".join(kept).replace('Parser key "', 'setting "')
    key = unknown[-1]
    section = re.match(r'Parser key "([\w.]+)"', message)
    if section:  # inside a class: its parameters, and those of the dataclasses among them
        names = set(_class_names(values.get(section.group(1).partition(".")[0])))
        return f"unknown setting {key!r} in {section.group(1)}{nearest(key.rpartition('.')[2], names)}"
    parent = key.rpartition(".")[0]
    siblings = {name for name in options if name.rpartition(".")[0] == parent} or options
    return f"unknown setting {key!r}{nearest(key, siblings)}"


def _class_names(values: Any) -> Iterator[str]:
    """Parameter names of every class that a nested configuration mentions."""
    if isinstance(values, dict):
        if "class_path" in values:
            module, _, name = str(values["class_path"]).rpartition(".")
            yield from _parameters(getattr(importlib.import_module(module), name))
        for value in values.values():
            yield from _class_names(value)
    elif isinstance(values, list):
        for value in values:
            yield from _class_names(value)


def _parameters(kind: Any) -> Iterator[str]:
    hints = typing.get_type_hints(kind if dataclasses.is_dataclass(kind) else kind.__init__)
    for name in inspect.signature(kind).parameters:
        yield name
        if dataclasses.is_dataclass(hints.get(name)):
            yield from _parameters(hints[name])
