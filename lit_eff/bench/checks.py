"""Checks in worker processes, and what they found.

Triton decides at import whether it compiles or interprets, and a process can be lost to a bad kernel: hence
processes.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Protocol

from lit_eff.bench.progress import progress


@dataclass(frozen=True)
class Outcome:
    """One check; without faults it passed."""

    name: str
    faults: tuple[str, ...] = ()


def outcome_of(name: str, find_faults: Callable[[], Sequence[str]]) -> Outcome:
    """What a check found; whatever it raises is a fault, not the end of the run."""
    try:
        return Outcome(name, tuple(find_faults()))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return Outcome(name, (f"{type(error).__name__}: {lines[0]}",))


class Check(Protocol):
    """A picklable check. ``interprets``: in Triton's interpreter; ``compiles``: a budget, run nowhere."""

    @property
    def name(self) -> str: ...
    @property
    def interprets(self) -> bool: ...
    @property
    def compiles(self) -> bool: ...
    def run(self) -> Outcome: ...


def run_jobs(
    found: Sequence[Check], processes: int, tell: Callable[[Outcome], None] = lambda _: None
) -> list[Outcome]:
    """All outcomes, in the order of the jobs; ``tell`` hears each as it comes.

    A worker that dies is a fault of every job then unfinished.
    """
    outcomes: dict[int, Outcome] = {}
    with progress("checking", len(found)) as advance:
        # Budgets compile, so their workers may not interpret.
        for interpret in (False, True):
            mine = [index for index, job in enumerate(found) if job.interprets is interpret]
            if not mine:
                continue
            with ProcessPoolExecutor(
                min(processes, len(mine)),
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=("1" if interpret else "0",),
            ) as pool:
                running = {pool.submit(found[index].run): index for index in mine}
                for future in as_completed(running):
                    index = running[future]
                    try:
                        outcomes[index] = future.result()
                    except BrokenProcessPool:
                        outcomes[index] = Outcome(found[index].name, ("its process, or one beside it, died",))
                    tell(outcomes[index])
                    advance()
    return [outcomes[index] for index in range(len(found))]


def _start_worker(interpret: str) -> None:
    os.environ["TRITON_INTERPRET"] = interpret
    import torch

    torch.set_num_threads(1)


def report(found: Sequence[Check], outcomes: Sequence[Outcome]) -> int:
    """Print how many passed, and return the exit code: 1 if anything failed."""
    failed = [each for each in outcomes if each.faults]
    compiled = sum(check.compiles for check in found)
    interpreted = any(check.interprets for check in found)
    where = (
        "in Triton's interpreter" if interpreted else "on the GPU" if compiled < len(found) else "compiled"
    )
    passed = f"{len(outcomes) - len(failed)} of {len(outcomes)} checks passed"
    print(
        f"{passed}: {len(outcomes) - compiled} cases {where}, {compiled} budgets compiled for sm_80 and sm_90"
    )
    return int(bool(failed))


def print_failure(outcome: Outcome) -> None:
    if outcome.faults:
        print(f"FAILED {outcome.name}: {'; '.join(outcome.faults)}", flush=True)
