"""Errors a user can act on. The command line prints one as a single line and exits with code 2."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class UserError(Exception):
    """Bad input: the message is one line naming the value, what was expected and what to do."""


def nearest(name: str, options: Iterable[str]) -> str:
    """A hint such as ``; did you mean 'model'?``, or the list of options when none is close."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=2, cutoff=0.6)
    if close:
        return "; did you mean " + " or ".join(repr(option) for option in close) + "?"
    return "; expected one of " + ", ".join(options)


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Raises:
        UserError: naming the extra to install when the module is missing.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise UserError(f"{module} is not installed; run: pip install 'lit_eff[{extra}]'") from None
