"""The ``lit-eff`` command: one table maps a command to its function, imported only when it runs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from lit_eff.errors import UserError, nearest


class Command(NamedTuple):
    """``target`` is ``module:function`` with the signature ``(argv) -> exit code``."""

    target: str
    help: str
    extra: str | None = "train"


LIGHTNING = ("fit", "validate", "test", "predict")
COMMANDS = {
    "quickstart": Command("lit_eff.cli.quickstart:main", "the whole line on the packaged recipe, on a CPU"),
    "fit": Command(
        "lit_eff.cli.lightning:main", "train a recipe: --config RECIPE [group=choice] [a.b=1] [--a.b 1]"
    ),
    "validate": Command("lit_eff.cli.lightning:main", "evaluate a checkpoint on the validation split"),
    "test": Command("lit_eff.cli.lightning:main", "evaluate a checkpoint on the test split"),
    "predict": Command("lit_eff.cli.lightning:main", "predictions of a checkpoint"),
    "calibrate": Command("lit_eff.cli.calibrate:main", "certify exit thresholds: writes exits.json"),
    "profile": Command(
        "lit_eff.cli.profile:main", "traces of training steps and kernel traffic, in TensorBoard"
    ),
    "export": Command("lit_eff.cli.export:main", "write a bundle from a checkpoint"),
    "generate": Command(
        "lit_eff.cli.generate:main", "text from a bundle: autoregressive, certified, lossless", None
    ),
    "verify": Command(
        "lit_eff.cli.verify:main", "measure a bundle's certificate again on held-out data", None
    ),
    "serve": Command("lit_eff.cli.serve:main", "OpenAI-compatible server over a bundle", None),
    "bench": Command("lit_eff.cli.bench:main", "our kernels beside their peers: lit-eff bench NAME"),
    "doctor": Command(
        "lit_eff.cli.doctor:main", "what this machine has, and what each missing piece turns off", None
    ),
    "recipes": Command("lit_eff.cli.recipes:main", "list the packaged recipes, or print one", None),
}


def usage() -> str:
    lines = ["usage: lit-eff COMMAND [options]", "", "commands:"]
    lines += [f"  {name:<11} {command.help}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "lit-eff COMMAND --help tells a command's options."])


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 2 on bad input, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        import lit_eff

        print(f"lit_eff {lit_eff.__version__}")
        return 0
    name, rest = argv[0], argv[1:]
    try:
        if name not in COMMANDS:
            raise UserError(f"unknown command {name!r}{nearest(name, COMMANDS)}")
        return _load(name)(rest)
    except UserError as error:
        print(f"lit-eff: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lit-eff: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in `lit-eff ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _load(name: str) -> Callable[[list[str]], int]:
    module_name, _, function = COMMANDS[name].target.partition(":")
    try:
        target = getattr(importlib.import_module(module_name), function)
    except ModuleNotFoundError as error:
        extra = COMMANDS[name].extra
        if extra is None or (error.name or "").startswith("lit_eff"):
            raise
        message = f"`lit-eff {name}` needs {error.name}; run: pip install 'lit_eff[{extra}]'"
        raise UserError(message) from None
    return partial(target, name) if name in LIGHTNING else target


if __name__ == "__main__":
    sys.exit(main())
