"""``lit-eff bench attention --check``: all checks in worker processes, and what they found.

With a GPU: every generated case, on every path that can take it. Without: a varied choice of small cases in
Triton's interpreter. Either way: the kernels' budgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lit_eff.bench.attention_budgets import Budget, budgets, check_budget
from lit_eff.bench.attention_cached_cases import cached_cases
from lit_eff.bench.attention_cases import cases
from lit_eff.bench.attention_rule import Case, check, covering
from lit_eff.bench.checks import Outcome, print_failure, report, run_jobs
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

    @property
    def compiles(self) -> bool:
        return isinstance(self.what, Budget)

    @property
    def interprets(self) -> bool:
        return self.device == "cpu" and not self.compiles

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


def run_checks(texts: Sequence[str], processes: int) -> int:
    """Run, print and return the exit code: 1 if anything failed."""
    found = jobs_here(texts)
    outcomes = run_jobs(found, processes, print_failure)
    return report(found, outcomes)
