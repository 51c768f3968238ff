"""``lit-eff bench NAME``: our figures beside the peers' and the physical limits, in one run."""

from __future__ import annotations

import importlib
from pathlib import Path

import lit_eff.bench
from lit_eff.errors import UserError, nearest


def benchmarks() -> list[str]:
    """One module of ``lit_eff.bench`` is one benchmark."""
    return sorted(path.stem for path in Path(lit_eff.bench.__path__[0]).glob("[!_]*.py"))


def main(argv: list[str]) -> int:
    """Hand the rest of the line to the benchmark's own ``main``."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: lit-eff bench NAME [options]\n\nbenchmarks:\n  " + "\n  ".join(benchmarks()))
        return 0 if argv else 2
    name, *rest = argv
    if name not in benchmarks():
        raise UserError(f"no benchmark {name!r}{nearest(name, benchmarks())}")
    exit_code: int = importlib.import_module(f"lit_eff.bench.{name}").main(rest)
    return exit_code
