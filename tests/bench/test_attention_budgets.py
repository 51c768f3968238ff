"""Shared memory and spills of every shipped kernel, compiled without a GPU."""

from __future__ import annotations

import os

import pytest

from lit_eff.bench.attention_budgets import Budget, budgets
from lit_eff.bench.attention_checks import Job
from lit_eff.bench.checks import run_jobs


def test_every_form_has_a_budget() -> None:
    found = budgets()
    assert len({each.name for each in found}) == len(found)
    for capability in (80, 90):
        defaults = {
            (each.kernels, each.head_dim)
            for each in found
            if each.is_default and each.capability == capability
        }
        assert {("cache", 64), ("cache", 128)} < defaults
        assert {("hopper" if capability == 90 else "portable", width) for width in (64, 128)} < defaults


def test_too_much_shared_memory_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_eff.bench import attention_budgets
    from lit_eff.profiling import compiled

    def compile_launch(launch: str, capability: int) -> compiled.CompiledResources:
        shared, spills = (200_000, 0) if launch == "large" else (1_000, 8)
        return compiled.CompiledResources(launch, capability, 4, 2, shared, 128, spills, spills)

    monkeypatch.setattr(compiled, "compile_launch", compile_launch)
    monkeypatch.setattr(attention_budgets, "launches", lambda _: ["large", "spilling"])
    budget = Budget("portable", 80, "bfloat16", 64)
    assert attention_budgets.check_budget(budget).faults == (
        "large takes 200000 B of shared memory, of 101376",
        "spilling spills registers: 8 B stored, 8 B loaded a thread",
    )
    wide = Budget("hopper", 90, "bfloat16", 256)
    assert attention_budgets.check_budget(wide).faults == ()  # fits the H100; not a default, so it may spill


@pytest.mark.slow
def test_all_budgets_hold() -> None:
    outcomes = run_jobs([Job(each, "cpu") for each in budgets()], min(4, os.cpu_count() or 1))
    failed = [f"{each.name}: {'; '.join(each.faults)}" for each in outcomes if each.faults]
    assert not failed, "\n".join(failed)
