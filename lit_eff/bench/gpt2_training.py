"""GPT-2 training with only the attention changed, Hugging Face's eager, SDPA or ours; and by our own model.

The same initial weights, data, optimizer and precision for all (GPT2LMHeadModel from its config, random
weights, no dropout, bf16 autocast, fused AdamW, T 1,024). As lit_eff-compile our attention is registered with
transformers, the model's code untouched; lit_eff-model is this project's model and loss. Step times are
medians of interleaved turns; losses are of the same batches of real text. A -graph job's whole step is one
CUDA graph: the others' steps also take the host's time.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from lit_eff.bench.gpt2_job import SIZES, Size, TrainingJob, serve
from lit_eff.bench.gpt2_model import TransformerJob
from lit_eff.bench.results import installed_version
from lit_eff.cli.arguments import Parser
from lit_eff.errors import UserError, nearest, require
from lit_eff.files import atomic_path
from lit_eff.profiling.devices import driver_version, find_device

# name -> (class, attention, compiled, captured). "sdpa_unmasked" is Hugging Face's own function without the
# mask tensor that transformers makes when traced, "none" a step without attention: as if it were free.
JOBS = {
    "eager": (TrainingJob, "eager", False, False),
    "eager-compile": (TrainingJob, "eager", True, False),
    "sdpa": (TrainingJob, "sdpa", False, False),
    "sdpa-compile": (TrainingJob, "sdpa", True, False),
    "sdpa-unmasked-compile": (TrainingJob, "sdpa_unmasked", True, False),
    "sdpa-unmasked-graph": (TrainingJob, "sdpa_unmasked", True, True),
    "lit_eff-compile": (TrainingJob, "lit_eff", True, False),
    "lit_eff-graph": (TrainingJob, "lit_eff", True, True),
    "lit_eff-model": (TransformerJob, "lit_eff", True, False),
    "lit_eff-model-graph": (TransformerJob, "lit_eff", True, True),
    "none-compile": (TrainingJob, "none", True, False),
}
EAGER, FREE = "eager", "none-compile"
MODELS = ("lit_eff-model", "lit_eff-model-graph")
OURS = ("lit_eff-compile", "lit_eff-graph", *MODELS)
BASELINES = ("sdpa-compile", "sdpa-unmasked-compile")
GOALS = {"small": 3.5, "medium": 3.0}  # over eager attention: FlashAttention (Dao et al. 2022), table 2
MODEL_GOAL = 1.2  # of our own model, over Hugging Face's compiled as it is
Tokens = NDArray[np.int32]
COLOURS = {name: f"C{index % 10}" for index, name in enumerate(JOBS)}


@dataclass
class Row:
    """One job's figures; ``fault`` says why there are none."""

    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    milliseconds: list[float] = field(default_factory=list)
    peak_memory_bytes: int | None = None
    losses: list[float] | None = None
    kernels: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None

    @property
    def median(self) -> float | None:
        """Milliseconds a step."""
        return statistics.median(self.milliseconds) if self.milliseconds else None


class Worker:
    """A job in another process, asked one thing at a time; after a fault it is never asked again."""

    def __init__(self, row: Row, turns: Sequence[Any], job: tuple[Any, ...]) -> None:
        context = multiprocessing.get_context("spawn")
        self.row = row
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, turns, job), daemon=True)
        self._process.start()
        theirs.close()

    def answer(self) -> Any:
        """What the job sent, or None with the row's fault set."""
        try:
            value, self.row.fault = self._connection.recv()
        except (EOFError, ConnectionResetError):
            value, self.row.fault = None, "its process died (out of memory?)"
        return value

    def ask(self, *request: Any) -> Any:
        """The answer of the job's method, or None."""
        if self.row.fault is not None:
            return None
        self._connection.send(request)
        return self.answer()

    def stop(self) -> None:
        """Let the process end by itself, which a job still compiling would not do soon."""
        if self._process.is_alive():
            with suppress(BrokenPipeError):
                self._connection.send(None)
            self._process.join(timeout=5)
            self._process.terminate()
        self._process.join()


def compare(
    size: Size,
    names: Sequence[str],
    text: Callable[[], Tokens],
    options: Namespace,
    say: Callable[[str], None],
) -> list[Row]:
    """Run the jobs of one size: all are built, then take turns.

    Args:
        text: makes the rows of the loss curves, (steps * B, T), while the jobs compile.
        options: as parsed from the command line.
        say: called with a line before each stage.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    context = multiprocessing.get_context("spawn")
    slots, large = context.BoundedSemaphore(options.parallel), context.Lock()
    say(f"compiling {len(names)} jobs, {options.parallel} at a time")
    workers = []
    for name in names:
        make, *job = JOBS[name]
        # Eager attention keeps all its scores: no two such jobs fit a GPU at once.
        turns = [large, slots] if EAGER in job else [slots]
        workers.append(Worker(Row(name), turns, (make, size, *job, device, options.seed)))
    rows = [worker.row for worker in workers]
    try:
        rows_NT = text()
        for worker in workers:
            worker.row.facts = worker.answer() or {}
            say(f"{worker.row.name}: {worker.row.fault or 'ready'}")
        say("timing, in turns")
        for _ in range(options.rounds):
            for worker in workers:
                timed = worker.ask("time", options.steps)
                if timed is not None:
                    worker.row.milliseconds.append(timed["milliseconds"])
                    worker.row.peak_memory_bytes = timed["peak_memory_bytes"]
        say("kernel times")
        for worker in workers:
            worker.row.kernels = worker.ask("profile", 2) or {}
        say("loss curves")
        for worker in workers:
            if worker.row.name != FREE:
                worker.row.losses = worker.ask("curve", rows_NT)
    except KeyboardInterrupt:
        say("interrupted: reporting what there is")
    finally:
        for worker in workers:
            worker.stop()
    return rows


def text_rows(source: str, size: Size, rows: int, seed: int) -> Tokens:
    """``rows`` rows of T tokens of real text in random order, in a BPE of GPT-2's kind trained on it.

    Raises:
        UserError: the text is not there, or too short.
    """
    from lit_eff.data.progress import Stages
    from lit_eff.data.readers import TextFormat
    from lit_eff.data.sources import open_source
    from lit_eff.data.tokenizer import TokenizerConfig, train_tokenizer

    texts = [record.text for record in open_source(source, TextFormat()).records()]
    random.Random(seed).shuffle(texts)
    with Stages() as stages:
        config = TokenizerConfig(vocab_size=size.vocabulary)
        tokenizer = train_tokenizer(texts[:8000], config, total=min(len(texts), 8000), progress=stages)
    wanted, tokens = rows * size.length, np.zeros(0, np.int32)
    for first in range(0, len(texts), 1000):
        encoded = tokenizer.encode_batch(texts[first : first + 1000])
        tokens = np.concatenate([tokens, *(np.array(each.ids, np.int32) for each in encoded)])
        if len(tokens) >= wanted:
            return tokens[:wanted].reshape(rows, size.length)
    raise UserError(f"{source} has {len(tokens):,} tokens; {wanted:,} are needed: pass fewer --curve-steps")


def report(name: str, size: Size, rows: list[Row]) -> list[dict[str, Any]]:
    """One record a job, ratios and shares worked out."""
    by_name = {row.name: row for row in rows}
    free = by_name[FREE].median if FREE in by_name else None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    found, driver = find_device(device), driver_version()
    records = []
    for row in rows:
        record: dict[str, Any] = {
            "benchmark": "gpt2_training",
            "size": name,
            "implementation": row.name,
            "device": device,
            "driver": driver,
            "torch": torch.__version__,
            "triton": installed_version("triton"),
            "transformers": require("transformers", "hf").__version__,
            "batch": size.batch,
            "length": size.length,
            "source": "measured",
        }
        if row.median is None:
            records.append(record | {"unavailable": row.fault})
            continue
        speed = size.batch * size.length * 1e3 / row.median
        kernels = row.kernels
        record |= {
            **row.facts,
            "milliseconds": row.median,
            "turns": len(row.milliseconds),
            "tokens_per_second": speed,
            "ratios": {other.name: other.median / row.median for other in rows if other.median is not None},
            "mfu": speed * row.facts["flops_per_token"] / found.peak("bfloat16") if found else None,
            "peak_memory_bytes": row.peak_memory_bytes,
            "attention_share_by_subtraction": None,
            **kernels,
            "losses": row.losses,
        }
        if free and row.name not in (FREE, *MODELS) and "graph" not in row.name:  # else it is not that step
            record["attention_share_by_subtraction"] = 1 - free / row.median
        attention = kernels.get("attention_milliseconds")
        record["attention_share_of_kernels"] = attention and attention / kernels["kernel_milliseconds"]
        records.append(record)
    return records


def loss_differences(records: list[dict[str, Any]]) -> dict[str, float]:
    """Mean over the steps of \\|loss - the first baseline's loss\\|, by implementation."""
    curves = {each["implementation"]: each.get("losses") for each in records}
    reference = next((curves[name] for name in BASELINES if curves.get(name)), None)
    if reference is None:
        return {}
    return {
        name: float(np.abs(np.subtract(losses, reference)).mean())
        for name, losses in curves.items()
        if losses and losses is not reference
    }


def verdicts(size: str, records: list[dict[str, Any]]) -> list[str]:
    """What must hold of ours, in words: against Hugging Face compiled and eager, and the losses."""
    lines = []
    differences = loss_differences(records)
    noise = max((value for name, value in differences.items() if name not in OURS), default=None)
    for record in records:
        name = record["implementation"]
        if name not in OURS:
            continue
        if "ratios" not in record:
            lines.append(f"{size}: {name} did not run, so it is not compared")
            continue
        goals = dict.fromkeys(BASELINES, 1.0) | {EAGER: GOALS.get(size)}
        if name in MODELS:
            goals[BASELINES[0]] = MODEL_GOAL
        for other, goal in goals.items():
            ratio = record["ratios"].get(other)
            if ratio is not None and goal is not None:
                word = "holds" if ratio >= goal else "FALLS SHORT"
                lines.append(f"{size}: {name} {ratio:.2f}x {other} (at least {goal:g}x: {word})")
        if name in differences and noise is not None:
            word = "within" if differences[name] <= 2 * noise else "BEYOND"
            lines.append(
                f"{size}: losses of {name} differ by {differences[name]:.2g} on average, "
                f"Hugging Face's among themselves by {noise:.2g}: {word} noise"
            )
    return lines


def show(size: str, records: list[dict[str, Any]], console: Console) -> None:
    """The table of one size, and its verdicts."""
    shape = f"batch {records[0]['batch']} x {records[0]['length']}"
    table = Table(title=f"GPT-2 {size}, {shape}, {records[0]['device']}")
    table.add_column("job", no_wrap=True)
    for heading in ("tokens/s", "ms", "x eager", "MFU", "GB", "kernels, ms", "share", "breaks"):
        table.add_column(heading, justify="right")
    for each in records:
        if "unavailable" in each and "ratios" not in each:
            table.add_row(each["implementation"], f"unavailable: {each['unavailable']}")
            continue
        table.add_row(
            each["implementation"],
            f"{each['tokens_per_second']:,.0f}",
            f"{each['milliseconds']:.1f}",
            _format(each["ratios"].get(EAGER), ".2f"),
            _format(each["mfu"], ".1%"),
            _format(each["peak_memory_bytes"] and each["peak_memory_bytes"] / 1e9, ".1f"),
            _format(each.get("attention_milliseconds"), ".2f"),
            _format(each["attention_share_by_subtraction"], ".1%"),
            _format(each["graph_breaks"], "d"),
        )
    table.caption = (
        "GB: peak memory; kernels: fused attention's, a step; share: attention's of the step, by none-compile"
    )
    console.print(table)
    for line in verdicts(size, records):
        console.print(line, highlight=False)


def _say(began: float, size: str, line: str) -> None:
    print(f"{size}, {time.perf_counter() - began:.0f} s: {line}", file=sys.stderr, flush=True)


def _format(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Speeds and loss curves of every size, as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sizes = list(dict.fromkeys(each["size"] for each in records))
    figure = Figure(figsize=(12, 3.8 * len(sizes)), layout="constrained")
    FigureCanvasAgg(figure)
    for panels, size in zip(figure.subplots(len(sizes), 2, squeeze=False), sizes, strict=True):
        shown = [each for each in records if each["size"] == size and "ratios" in each]
        names = [each["implementation"] for each in shown]
        bars = panels[0].barh(
            names, [each["tokens_per_second"] for each in shown], color=[COLOURS[name] for name in names]
        )
        panels[0].bar_label(bars, fmt="{:,.0f}", padding=3)
        panels[0].invert_yaxis()
        panels[0].margins(x=0.25)
        panels[0].locator_params(axis="x", nbins=5)
        panels[0].set(title=f"GPT-2 {size}, {shown[0]['device'] if shown else ''}", xlabel="tokens/s")
        for each in shown:
            if each["losses"]:
                panels[1].plot(
                    each["losses"],
                    label=each["implementation"],
                    color=COLOURS[each["implementation"]],
                    linewidth=1,
                )
        panels[1].set(title="same batches, same seed", xlabel="step", ylabel="training loss")
        if any(each["losses"] for each in shown):
            panels[1].legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print, and write JSON lines and a plot; 1 if one of our jobs did not run."""
    options = _parser().parse(list(sys.argv[1:] if argv is None else argv))
    options.jobs = options.jobs or [
        name for name, job in JOBS.items() if torch.cuda.is_available() or not job[3]
    ]
    for name in options.jobs:
        if name not in JOBS:
            raise UserError(f"no job {name!r}{nearest(name, JOBS)}")
    for name in ("rounds", "steps", "curve_steps", "parallel"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(options, name)}; expected 1 or more")
    require("transformers", "hf")
    console = Console()
    records: list[dict[str, Any]] = []
    for name in options.sizes:
        size = SIZES[name]
        rows = compare(
            size,
            options.jobs,
            partial(text_rows, options.text, size, options.curve_steps * size.batch, options.seed),
            options,
            partial(_say, time.perf_counter(), name),
        )
        records += report(name, size, rows)
        show(name, [each for each in records if each["size"] == name], console)
        if options.output is not None:  # after each size: a later one may run out of time
            with atomic_path(options.output) as temporary:
                temporary.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
            draw(records, options.output.with_suffix(".png"))
    failed = [each for each in records if each["implementation"] in OURS and "ratios" not in each]
    return 1 if failed else 0


def _parser() -> Parser:
    parser = Parser(prog="lit-eff bench gpt2_training", description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["small", "medium"])
    parser.add_argument("--jobs", nargs="+", metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--rounds", type=int, default=12, help="turns of each job")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a turn")
    parser.add_argument("--curve-steps", type=int, default=100, help="training steps of the loss curves")
    parser.add_argument("--parallel", type=int, default=3, help="jobs that compile at once")
    parser.add_argument("--seed", type=int, default=0, help="of weights, text order and token ids")
    parser.add_argument("--text", default="sample:movie-reviews", help="what the loss curves train on")
    parser.add_argument("--output", type=Path, help="JSON lines; a plot beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
