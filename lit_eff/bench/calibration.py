"""Layers that calibration saves: each p-value beside plain Hoeffding and an oracle that knows the true risks.

Everything is simulated, on a CPU. Sections ``binary``, ``shares`` and ``smooth`` are losses of 100 candidates
in a fixed sequence (:mod:`lit_eff.bench.calibration_families`); the oracle takes the boldest candidate whose
true risk is within delta. Section ``thresholds`` puts vectors of per-exit thresholds, their path learned on
half of n texts and tested on the other half, beside one shared threshold tested on all n, or on that half.
Besides layers saved, on average over the trials, there is the share of trials that selected a candidate whose
true risk exceeds delta.

With --checkpoint nothing is simulated: what calibration promises of that model is put beside what it does
(:mod:`lit_eff.bench.calibration_deployment`).
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_eff.bench.calibration_families import FAMILIES, Tokens, risks, savings, tokens
from lit_eff.bench.progress import progress
from lit_eff.bench.results import Measurement, header, lines, with_ratios, write_results
from lit_eff.calibration import P_VALUES, fixed_sequence, learn_then_test, learn_thresholds
from lit_eff.cli.arguments import Parser
from lit_eff.cli.calibration_run import add_device
from lit_eff.errors import UserError
from lit_eff.files import atomic_path

SEQUENCES = (100, 1_000, 10_000)
CANDIDATES = 100
UNSEEN = 5_000  # texts that tell the true risk of thresholds
GRID = 1.0 - np.geomspace(1e-3, 0.9, 24)  # of vectors
SHARED_GRID = 1.0 - np.geomspace(1e-6, 0.9, 200)  # of one threshold, so that it lacks no fineness
ORACLE, PLAIN, VECTORS = "oracle", "hoeffding", "vectors"
SHARED, SHARED_HALF = "one threshold", "one threshold, half"
SAVED, VIOLATIONS = "layers saved", "trials over delta"
DELTA, EPSILON = 0.1, 0.05
COLOURS = {
    ORACLE: "black", "binomial": "C2", "wsr": "C3", "hoeffding_bentkus": "C1", PLAIN: "C0",
    VECTORS: "C3", SHARED: "C0", SHARED_HALF: "C4",
}  # fmt: skip
Floats = NDArray[np.float64]


def trials_of(n: int, trials: int) -> int:
    """Fewer for many sequences, whose outcomes hardly differ."""
    return max(20, min(trials, trials * 1_000 // n))


def compare_p_values(family: str, n: int, trials: int, seed: int = 0) -> dict[str, tuple[Floats, Floats]]:
    """Layers saved and true risk of what each p-value selects, and the oracle: two arrays ``(trials,)``."""
    rng = np.random.default_rng([seed, n])
    risk_K, saving_K = risks(CANDIDATES), savings(CANDIDATES)
    names = [name for name in P_VALUES if name != "binomial" or family == "binary"]
    selected: dict[str, list[int]] = {name: [] for name in names}
    chunk = max(1, 2_000_000 // (n * CANDIDATES))
    for start in range(0, trials, chunk):
        losses = FAMILIES[family](risk_K, min(chunk, trials - start), n, rng)
        for name in names:
            p_values = P_VALUES[name](losses, DELTA, EPSILON)
            selected[name] += (fixed_sequence(p_values, EPSILON).sum(axis=-1) - 1).tolist()
    oracle = int(np.flatnonzero(risk_K <= DELTA)[-1])
    selected[ORACLE] = [oracle] * trials
    # -1, nothing certified, is never exiting: no layers saved, no risk.
    return {
        name: (np.append(saving_K, 0.0)[columns], np.append(risk_K, 0.0)[columns])
        for name, columns in selected.items()
    }


def compare_thresholds(n: int, trials: int, seed: int = 0) -> dict[str, tuple[Floats, Floats]]:
    """Layers saved and risk, on other texts, of vectors of thresholds and of one shared threshold."""
    shared = np.repeat(SHARED_GRID[:, None], 3, axis=1)
    found: dict[str, list[tuple[float, float]]] = {VECTORS: [], SHARED: [], SHARED_HALF: []}
    for trial in range(trials):
        rng = np.random.default_rng([seed, n, trial])
        text, truth = (tokens(count, rng, uneven=True) for count in (n, UNSEEN))
        learn, test = text.part(0, n // 2), text.part(n // 2, n)
        path = learn_thresholds(learn.measure, GRID, 3, delta=DELTA, epsilon=EPSILON, p_value="wsr")
        found[VECTORS].append(_certified(test, path.thresholds, truth))
        found[SHARED].append(_certified(text, shared, truth))
        found[SHARED_HALF].append(_certified(test, shared, truth))
    return {name: (np.array(each)[:, 0], np.array(each)[:, 1]) for name, each in found.items()}


def _certified(data: Tokens, thresholds_KE: Floats, truth: Tokens) -> tuple[float, float]:
    selected = learn_then_test(
        data.measure(thresholds_KE)[0], delta=DELTA, epsilon=EPSILON, p_value="wsr"
    ).selected
    if selected is None:
        return 0.0, 0.0
    losses, saved = truth.measure(thresholds_KE[[selected]])
    return float(saved[0]), float(losses.mean())


def measure(trials: int, seed: int) -> list[Measurement]:
    """Every section, a cell for each number of sequences."""
    cells = [(family, n) for family in FAMILIES for n in SEQUENCES]
    cells += [("thresholds", n) for n in SEQUENCES[:2]]  # learning takes long, and gains no more
    measurements: list[Measurement] = []
    with progress("simulating", len(cells)) as advance:
        for section, n in cells:
            count = trials_of(n, trials)
            if section == "thresholds":
                count = max(20, count // 10)
                outcomes = compare_thresholds(n, count, seed)
            else:
                outcomes = compare_p_values(section, n, count, seed)
            measurements += _measurements(section, n, outcomes)
            advance(f"{section}, n {n:,}")
    return with_ratios(measurements)


def _measurements(section: str, n: int, outcomes: dict[str, tuple[Floats, Floats]]) -> Iterator[Measurement]:
    for name, (saved, risk) in outcomes.items():
        over = risk > DELTA
        for quantity, unit, values in ((SAVED, "layers", saved), (VIOLATIONS, "share", over)):
            mean = float(values.mean())
            error = 1.96 * float(values.std()) / math.sqrt(len(values))
            yield Measurement(
                section=section,
                cell=f"n {n:,}",
                contender=name,
                quantity=quantity,
                unit=unit,
                ours=name not in (ORACLE, PLAIN, SHARED, SHARED_HALF),
                rate=mean,
                noise=error / mean if mean else None,
                rounds=len(values),
            )


def report(measurements: Sequence[Measurement]) -> Any:
    """A ``rich`` table of layers saved, and ours as a share of the best peer's; a column an n."""
    from rich.table import Table

    table = Table(title=f"layers saved (of the best peer's), delta {DELTA}, epsilon {EPSILON}")
    cells = [f"n {n:,}" for n in SEQUENCES]
    table.add_column("section")
    table.add_column("contender")
    for cell in cells:
        table.add_column(cell, justify="right")
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for each in measurements:
        if each.quantity == SAVED:
            ratio = each.ratio_to_best_peer if each.ours else None
            share = "" if ratio is None else f" ({ratio:.1%})"
            rows.setdefault((each.section, each.contender), {})[each.cell] = f"{each.rate:.2f}{share}"
    for (section, contender), found in rows.items():
        table.add_row(section, contender, *(found.get(cell, "") for cell in cells))
    return table


def draw(measurements: Sequence[Measurement], path: Path) -> None:
    """Layers saved over the number of sequences, a panel a section."""
    from matplotlib.figure import Figure

    sections = list(dict.fromkeys(each.section for each in measurements))
    figure = Figure(figsize=(4 * len(sections), 3.6), layout="constrained")
    for axes, section in zip(figure.subplots(1, len(sections)), sections, strict=True):
        mine = [each for each in measurements if each.section == section and each.quantity == SAVED]
        for name in dict.fromkeys(each.contender for each in mine):
            points = [each for each in mine if each.contender == name]
            axes.errorbar(
                [int(each.cell.removeprefix("n ").replace(",", "")) for each in points],
                [each.rate for each in points],
                [(each.rate or 0.0) * (each.noise or 0.0) for each in points],
                label=name,
                color=COLOURS[name],
                marker=".",
                linestyle="--" if name == ORACLE else "-",
            )
        axes.set(title=section, xscale="log", xlabel="sequences", ylabel="layers saved", ylim=(0, None))
        axes.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, print, and write JSON lines and a plot; or measure a checkpoint."""
    argv = sys.argv[1:] if argv is None else list(argv)
    options = _parser().parse(argv)
    if options.checkpoint is not None:
        return _deployment(argv, options)
    if options.settings:
        raise UserError(
            f"unexpected {options.settings[0]!r}: settings change a recipe; add --checkpoint CKPT"
        )
    if options.trials < 20:
        raise UserError(f"--trials {options.trials}: a mean and its error take at least 20")
    measurements = measure(options.trials, options.seed)
    head = header("calibration", argv, {})
    if options.json:
        print(*lines(head, measurements), sep="\n")
    else:
        from rich.console import Console

        Console().print(report(measurements))
    if options.output is not None:
        write_results(options.output, head, measurements)
        draw(measurements, options.output.with_suffix(".png"))
    return 0


def _deployment(argv: Sequence[str], options: Namespace) -> int:
    from lit_eff.bench import calibration_deployment as deployment  # needs torch, and then Lightning
    from lit_eff.cli.calibrate import calibration_inputs
    from lit_eff.cli.lightning import recipe_of_checkpoint

    if options.resplits < 1:
        raise UserError(f"--resplits is {options.resplits}; expected at least 1")
    recipe = recipe_of_checkpoint(options.checkpoint, options.settings)
    given = calibration_inputs(options.checkpoint, recipe, options.device)
    found = deployment.measure(given, options.resplits, options.seed)
    head, measurements = header("calibration", argv, {}), deployment.measurements(found)
    if options.json:
        print(*lines(head, measurements), sep="\n")
    else:
        from rich.console import Console

        Console().print(deployment.table(found))
    if options.output is not None:
        write_results(options.output, head, measurements)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="lit-eff bench calibration",
        description=__doc__,
        usage="%(prog)s [options] [--checkpoint CKPT [calibration.delta=0.1 ...]]",
    )
    parser.add_argument("--trials", type=int, default=400, help="draws of a cell (fewer for many sequences)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, metavar="CKPT", help="of `lit-eff fit`, with its recipe")
    parser.add_argument("--resplits", type=int, default=20, help="of its prompts (default: %(default)s)")
    add_device(parser)
    parser.add_argument("settings", nargs="*", help="changes to the checkpoint's recipe, as in a.b=1")
    parser.add_argument(
        "--output", type=Path, help="write JSON lines here, and a plot of simulations beside them (.png)"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON lines instead of a table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
