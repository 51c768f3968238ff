"""``lit-eff bench attention --check``: all checks in worker processes, and what they found.

With a GPU: every generated case, on every path that can take it. Without: a varied choice of small cases in
Triton's interpreter. Either way: the kernels' budgets. Triton decides at import whether it compiles or
interprets, and a process can be lost to a bad kernel: hence processes.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from lit_eff.bench.attention_budgets import Budget, budgets, check_budget
from lit_eff.bench.attention_cached_cases import cached_cases
from lit_eff.bench.attention_cases import cases
from lit_eff.bench.attention_rule import Case, Outcome, check, covering
from lit_eff.bench.progress import progress
from lit_eff.errors import UserError

INTERPRETED = (40, 12)  # cases of attention and of attention on a cache that run without a GPU
INTERPRETED_COST = 70_000  # pairs of a query and a key: seconds a case


@dataclass(frozen=True)
class Job:
    """One check in a worker."""

    what: Case | Budget
    device: str

    @property
    def name(self) -> str:
        return self.what.name

    def run(self) -> Outcome:
        if isinstance(self.what, Budget):
            return check_budget(self.what)
        return check(self.what, self.device)


def jobs_here(texts: Sequence[str]) -> list[Job]:
    """What this machine can check, narrowed to names that contain one of ``texts``.

    Raises:
        UserError: no name contains them.
    """
    import torch

    everything: list[Case] = [*cases(), *cached_cases()]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if texts:
        chosen = [case for case in everything if any(text in case.name for text in texts)]
    elif device == "cuda":
        chosen = everything
    else:
        chosen = covering(cases(), INTERPRETED[0], INTERPRETED_COST)
        chosen += covering(cached_cases(), INTERPRETED[1], 10 * INTERPRETED_COST)
    found = [Job(case, device) for case in chosen]
    compiled = budgets()
    found += [Job(each, device) for each in compiled if not texts or any(text in each.name for text in texts)]
    if not found:
        raise UserError(f"--cells {' '.join(texts)!r} is in no check's name (such as {everything[0].name!r})")
    return found


def run_jobs(
    found: Sequence[Job], processes: int, tell: Callable[[Outcome], None] = lambda _: None
) -> list[Outcome]:
    """All outcomes, in the order of the jobs; ``tell`` hears each as it comes.

    A worker that dies is a fault of every job then unfinished.
    """
    outcomes: dict[int, Outcome] = {}
    with progress("checking", len(found)) as advance:
        # Budgets compile, so their workers may not interpret.
        for interpret in (False, True):
            mine = [
                index
                for index, job in enumerate(found)
                if (job.device == "cpu" and not isinstance(job.what, Budget)) is interpret
            ]
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


def run_checks(texts: Sequence[str], processes: int) -> int:
    """Run, print and return the exit code: 1 if anything failed."""
    found = jobs_here(texts)
    outcomes = run_jobs(found, processes, _print_failure)
    failed = [each for each in outcomes if each.faults]
    devices = {job.device for job in found if not isinstance(job.what, Budget)}
    where = "on the GPU" if "cuda" in devices else "in Triton's interpreter" if devices else "compiled"
    compiled = sum(isinstance(job.what, Budget) for job in found)
    passed = f"{len(outcomes) - len(failed)} of {len(outcomes)} checks passed"
    print(
        f"{passed}: {len(outcomes) - compiled} cases {where}, {compiled} budgets compiled for sm_80 and sm_90"
    )
    return int(bool(failed))


def _print_failure(outcome: Outcome) -> None:
    if outcome.faults:
        print(f"FAILED {outcome.name}: {'; '.join(outcome.faults)}", flush=True)
