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
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lit_eff.bench.gpt2_job import SIZES, Size, TrainingJob, serve
from lit_eff.bench.gpt2_model import TransformerJob
from lit_eff.bench.gpt2_report import EAGER, FREE, OURS, Row, draw, report, report_console, show
from lit_eff.cli.arguments import Parser
from lit_eff.errors import UserError, nearest, require
from lit_eff.files import atomic_path

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
Tokens = NDArray[np.int32]
COLOURS = {name: f"C{index % 10}" for index, name in enumerate(JOBS)}


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


def _say(began: float, size: str, line: str) -> None:
    print(f"{size}, {time.perf_counter() - began:.0f} s: {line}", file=sys.stderr, flush=True)


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
    console = report_console()
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
