"""What the benchmarks of cells share: options, a choice of cells, warm-up, timing, report.

A benchmark is a module of this package with a `Command`, whose sections hold cells.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lit_eff.bench.results import Measurement, header, lines, read_results, write_results
from lit_eff.cli.arguments import Parser
from lit_eff.errors import UserError


class Cell(Protocol):
    @property
    def section(self) -> str: ...
    @property
    def label(self) -> str: ...
    def warm(self) -> None: ...
    def run(self, stopwatch: Any, rounds: int) -> list[Measurement]: ...


@dataclass(frozen=True)
class Command:
    """``lit-eff bench NAME``, whose module is ``lit_eff.bench.NAME``.

    ``need`` raises UserError where nothing can be timed; ``check`` takes texts that choose among the checks
    and a number of processes, and returns an exit code.
    """

    name: str
    about: str
    sections: tuple[str, ...]
    cells: Callable[[], Sequence[Cell]]
    need: Callable[[], None]
    check: Callable[[Sequence[str], int], int]

    def chosen_cells(self, sections: Sequence[str], texts: Sequence[str]) -> list[Cell]:
        """The cells of ``sections`` whose label contains one of ``texts`` (all of them without any).

        Raises:
            UserError: naming the first text that no cell's label contains.
        """
        cells = [cell for cell in self.cells() if cell.section in sections]
        for text in texts:
            if not any(text in cell.label for cell in cells):
                labels = "; ".join(cell.label for cell in cells)
                raise UserError(f"--cells {text!r} is in no cell's name; the cells: {labels}")
        return [cell for cell in cells if not texts or any(text in cell.label for text in texts)]

    def parser(self) -> Parser:
        result = Parser(prog=f"lit-eff bench {self.name}", description=self.about)
        result.add_argument(
            "--only", nargs="+", choices=self.sections, default=self.sections, help="sections to run"
        )
        result.add_argument(
            "--cells", nargs="+", default=[], metavar="TEXT", help="run only cells whose name contains a TEXT"
        )
        result.add_argument(
            "--rounds", type=int, default=20, help="samples a contender and cell (default 20)"
        )
        result.add_argument(
            "--jobs",
            type=int,
            default=max(1, (os.cpu_count() or 1) * 3 // 4),
            help="processes that compile ahead of the timing; 1 compiles as it goes (default %(default)s)",
        )
        result.add_argument(
            "--output", type=Path, help="write JSON lines here, and a plot beside them (.png)"
        )
        result.add_argument(
            "--compare", type=Path, metavar="FILE", help="an earlier --output; exit 1 if ours became slower"
        )
        result.add_argument("--json", action="store_true", help="print the JSON lines instead of tables")
        result.add_argument(
            "--check",
            action="store_true",
            help="no timing: generated cases against the reference, and the kernels' shared memory and "
            "spills; without a GPU some cases in Triton's interpreter. --cells chooses among them. Exit 1 "
            "on a failure",
        )
        result.add_argument("--warm", nargs="+", help="compile these cells and end (what --jobs starts)")
        return result

    def run(self, argv: Sequence[str] | None = None) -> int:
        """0; 1 if a check failed, a result of ours was wrong, or ours became slower than ``--compare``.

        Raises:
            UserError: for arguments that do not fit, or without a GPU (but for ``--check``).
        """
        argv = sys.argv[1:] if argv is None else list(argv)
        options = self.parser().parse(argv)
        if options.rounds < 3:
            raise UserError(f"--rounds {options.rounds}: a median and its noise take at least 3")
        if options.jobs < 1:
            raise UserError(f"--jobs {options.jobs} must be at least 1")
        if options.check:
            return self.check(options.cells, options.jobs)
        if options.output is not None and options.output.suffix == ".png":
            raise UserError(
                f"--output {options.output} takes the JSON lines; the plot goes beside them as .png"
            )
        before = read_results(options.compare) if options.compare is not None else None
        cells = self.chosen_cells(options.only, options.cells)
        self.need()
        if options.warm:
            for cell in cells:
                if cell.label in options.warm:
                    cell.warm()
            return 0
        if options.jobs > 1 and len(cells) > 1:
            _warm(self.name, cells, options.jobs)
        head, measurements = _measure(self.name, cells, options.rounds, argv)
        return _report(head, measurements, before, options.output, options.json)


def _warm(name: str, cells: Sequence[Cell], jobs: int) -> None:
    """Compile all cells in ``jobs`` processes: their compilers' caches on disk are what remains."""
    from lit_eff.bench.progress import progress

    shares = [cells[start::jobs] for start in range(min(jobs, len(cells)))]
    command = [sys.executable, "-m", f"lit_eff.bench.{name}", "--warm"]
    running = [
        subprocess.Popen(
            [*command, *(cell.label for cell in share)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for share in shares
    ]
    try:
        with progress("compiling", len(running)) as advance:
            for process in running:
                process.wait()
                advance()
    finally:
        for process in running:
            process.kill()


def _measure(
    name: str, cells: Sequence[Cell], rounds: int, argv: Sequence[str]
) -> tuple[dict[str, Any], list[Measurement]]:
    from lit_eff.bench.measure import CudaStopwatch, ceilings
    from lit_eff.bench.progress import progress

    stopwatch = CudaStopwatch()
    head = header(name, argv, ceilings(stopwatch, rounds))
    measurements: list[Measurement] = []
    with progress("timing", len(cells)) as advance:
        for cell in cells:
            measurements += cell.run(stopwatch, rounds)
            advance(cell.label)
    return head, measurements


def _report(
    head: dict[str, Any],
    measurements: list[Measurement],
    before: tuple[dict[str, Any], list[Measurement]] | None,
    output: Path | None,
    as_json: bool,
) -> int:
    from rich.console import Console

    from lit_eff.bench.compare import changes
    from lit_eff.bench.plot import plot
    from lit_eff.bench.report import print_report

    changed = None if before is None else changes(before[1], measurements)
    if as_json:
        print(*lines(head, measurements), sep="\n")
    else:
        print_report(Console(), head, measurements, changed)
    if output is not None:
        write_results(output, head, measurements)
        plot(output.with_suffix(".png"), head, measurements)
        if not as_json:
            print(f"wrote {output} and {output.with_suffix('.png')}")
    failed = any(each.ours and each.wrong for each in measurements)
    return int(failed or any(each.is_regression for each in changed or []))
