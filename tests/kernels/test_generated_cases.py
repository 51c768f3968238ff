"""The generated cases of `lit_eff.bench`: a slice in Triton's interpreter, all of them on a GPU."""

from __future__ import annotations

import os

import pytest

from lit_eff.bench.attention_cached_cases import cached_cases
from lit_eff.bench.attention_cases import cases
from lit_eff.bench.attention_checks import jobs_here
from lit_eff.bench.attention_rule import Case, check, covering
from lit_eff.bench.checks import run_jobs

SMALL, LARGER = 70_000, 300_000  # pairs of a query and a key
SLICE: list[Case] = [*covering(cases(), 22, SMALL), *covering(cached_cases(), 9, 10 * SMALL)]
REST = [
    case
    for case in [*covering(cases(), 120, LARGER), *covering(cached_cases(), 60, 10 * LARGER)]
    if case not in SLICE
]


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(
    "case",
    [*SLICE, *(pytest.param(case, marks=pytest.mark.slow) for case in REST)],
    ids=lambda case: case.name,
)
def test_interpreted(case: Case) -> None:
    assert check(case, "cpu").faults == ()


@pytest.mark.gpu
@pytest.mark.timeout(1800)
def test_all_on_a_gpu() -> None:
    """On every path that takes them, in many processes: most of the time goes into compiling."""
    found = [job for job in jobs_here(()) if job.device == "cuda" and not job.name.startswith("budget")]
    assert len(found) >= 400
    outcomes = run_jobs(found, max(1, (os.cpu_count() or 1) - 2))
    failed = [f"{each.name}: {'; '.join(each.faults)}" for each in outcomes if each.faults]
    assert not failed, "\n".join([f"{len(failed)} of {len(outcomes)}:", *failed])
