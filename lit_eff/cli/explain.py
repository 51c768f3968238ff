"""jsonargparse's errors, nested and of several lines, as one line: the key and the nearest valid ones."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
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
    r"|Given value|Problem with given|Not a valid subclass|Subclass types expect|- a class path|- a dict "
)
_PLACE = re.compile(r'(?:Parser key "([\w.]+)":|([a-z_][\w.]*):) ')
_REQUIRED = re.compile(r"the following arguments are required: ([\w.]+)|^([\w.]+) is not set, and has")
_NO_CLASS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_EXPECTED = re.compile(
    r"Expected (?:an? )?(<class '[\w.]+'>|typing\.\S+?\[.*?\](?=\.| Got| Expected|$)"
    r"|[\w.\[\], ]+?(?=\. Got|$))"
)
_LITERAL = re.compile(r"typing\.Literal\[(.*)\]")


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
        return _explain_value(message)
    key = unknown[-1]
    group = re.match(r"Group '([\w.]+)' does not accept", message)
    if group:
        key = f"{group.group(1)}.{key}"
    section = re.match(r'Parser key "([\w.]+)"', message)
    if section:  # inside a class: its parameters, and those of the dataclasses among them
        names = set(_class_names(values.get(section.group(1).partition(".")[0])))
        wrong = next((part for part in key.split(".") if part not in names), key)
        return f"unknown setting {key!r} in {section.group(1)}{nearest(wrong, names)}"
    parent = key.rpartition(".")[0]
    siblings = {name for name in options if name.rpartition(".")[0] == parent} or options
    return f"unknown setting {key!r}{nearest(key, siblings)}"


def _explain_value(message: str) -> str:
    """A value of the wrong type, a class that does not exist, or a check of our own."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if not _NOISE.search(line)]
    text, where = " ".join(lines), []
    while match := _PLACE.match(text):  # a class inside a class has a message inside a message
        where.append(match.group(1) or match.group(2))
        text = text[match.end() :].removeprefix("- ")
    if required := _REQUIRED.search(text):
        return f"{'.'.join([*where, required[1] or required[2]])} is not set, and has no default"
    if no_class := _NO_CLASS.search(text):
        module, name = no_class.groups()
        text = f"{module} has no class {name!r}{nearest(name, _members(module))}"
    elif kinds := list(dict.fromkeys(_EXPECTED.findall(text))):
        given = re.search(r"(?:Got|Given) value: (.*)", message)
        literal = _LITERAL.fullmatch(kinds[0])
        expected = f"one of {literal[1]}" if literal else " or ".join(map(_type_name, kinds))
        text = f"expected {expected}, got {given[1]!r}" if given else f"expected {expected}"
        if literal and given:
            text += nearest(given[1], re.findall(r"'(\w+)'", literal[1]))
    return ": ".join(filter(None, [".".join(where), text]))


def _members(module: str) -> list[str]:
    """Public classes of a module, and the modules in it if it is a package."""
    found = importlib.import_module(module)
    classes = [name for name, value in vars(found).items() if inspect.isclass(value) and name[0] != "_"]
    return classes + [entry.name for entry in pkgutil.iter_modules(getattr(found, "__path__", None) or [])]


def _type_name(kind: str) -> str:
    return re.sub(r"<class '([\w.]+)'>", r"\1", kind)


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
