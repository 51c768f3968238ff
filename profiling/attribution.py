"""Time, bytes, FLOPs and energy of recorded steps as tables: by step, by module, by kernel.

Time is measured; bytes and FLOPs are modelled, operator by operator; energy is a meter's figure for all steps
together, shared out by time.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from lit_eff.profiling.operators import Key, Total
from lit_eff.profiling.report import ReportTable
from lit_eff.profiling.scope import Scope
from lit_eff.profiling.torch_trace import TorchTrace, Work
from lit_eff.profiling.traffic import Number

K = TypeVar("K")
Row = tuple[str | int | float | None, ...]
OUTSIDE = "(outside modules)"


@dataclass(frozen=True)
class StepCosts:
    """What is known of the steps beside the trace.

    ``totals`` are operators' modelled costs over ``steps_counted`` steps; ``energy`` is that of all steps of
    the trace together.
    """

    totals: Mapping[Key, Total]
    steps_counted: int
    energy: Number


def step_table(trace: TorchTrace, energy: Number) -> ReportTable:
    """A row a step: its time, how much of it the device (or operators, without one) worked, its energy."""
    busy: dict[int, float] = defaultdict(float)
    for work in _within_steps(trace):
        assert work.step is not None
        busy[work.step] += work.seconds
    whole = sum(step.duration for step in trace.steps) or 1.0
    rows = tuple(
        (
            step.name,
            1e3 * step.duration,
            1e3 * busy[index],
            busy[index] / step.duration if step.duration else None,
            _share(energy, step.duration / whole),
            _energy_source(energy),
        )
        for index, step in enumerate(trace.steps)
    )
    what = "kernels" if trace.on_device else "operators"
    return ReportTable(
        "Training steps",
        f"Time of each recorded step and of the {what} in it, measured by torch.profiler, which slows steps "
        "a little. Energy is shared out by time.",
        ("step", "ms (measured)", f"{what}, ms (measured)", "busy", "J", "source of J"),
        rows,
    )


def module_table(trace: TorchTrace, costs: StepCosts, most: int, *, alike: bool = False) -> ReportTable:
    """A row a module and phase, a step's share of everything, the ``most`` that took longest.

    ``alike``: the same module of all layers as one, ``blocks.*.mlp``.
    """
    steps = len(trace.steps) or 1
    named = _of_all_layers if alike else str
    seconds = _sums(_within_steps(trace), lambda work: Scope(named(work.scope.module), work.scope.phase))
    moved: dict[Scope, Total] = {}
    for key, each in costs.totals.items():
        moved.setdefault(Scope(named(key.module), key.phase), Total("")).add(each)
    whole = sum(seconds.values()) or 1.0
    places = sorted(seconds.keys() | moved.keys(), key=lambda scope: -seconds.get(scope, 0.0))
    rows: list[Row] = []
    for scope in places[:most]:
        time = seconds.get(scope, 0.0) / steps
        total, counted = moved.get(scope), costs.steps_counted or 1
        rows.append(
            (
                scope.module or OUTSIDE,
                scope.phase,
                1e3 * time,
                time * steps / whole,
                total.moved_bytes / counted / 1e6 if total else None,
                total.flops / counted / 1e9 if total else None,
                total.moved_bytes / counted / time / 1e9 if total and time else None,
                _share(costs.energy, time / whole),
                _energy_source(costs.energy),
            )
        )
    what = "kernels" if trace.on_device else "operators"
    return ReportTable(
        "A training step by kind of module" if alike else "A training step by module",
        f"A step's {what} by the innermost module they worked for, the {len(rows)} of {len(places)} places "
        "that took longest. Bytes are modelled: each operator reads its inputs and writes its outputs once; "
        "FLOPs are those of matrix products and attention. GB/s is modelled bytes over measured time.",
        (
            "module",
            "phase",
            "ms (measured)",
            "share of time",
            "MB (modelled)",
            "GFLOP (modelled)",
            "GB/s",
            "J",
            "source of J",
        ),
        tuple(rows),
    )


def kernel_table(trace: TorchTrace, most: int) -> ReportTable:
    """A row a kernel (or operator) and the module it works for most, the ``most`` that took longest."""
    steps = len(trace.steps) or 1
    works = list(_within_steps(trace))
    seconds, calls = _sums(works, lambda work: work.name), Counter(work.name for work in works)
    places: dict[str, dict[Scope, float]] = defaultdict(lambda: defaultdict(float))
    for work in works:
        places[work.name][work.scope] += work.seconds
    whole = sum(seconds.values()) or 1.0
    longest = sorted(seconds, key=lambda name: -seconds[name])[:most]
    rows = []
    for name in longest:
        scope = max(places[name], key=lambda place: places[name][place])
        rows.append(
            (
                name,
                calls[name] / steps,
                1e3 * seconds[name] / steps,
                seconds[name] / whole,
                scope.module or OUTSIDE,
                scope.phase,
                places[name][scope] / (seconds[name] or 1.0),
            )
        )
    what = "kernel" if trace.on_device else "operator"
    return ReportTable(
        f"A training step by {what}",
        f"The {len(rows)} of {len(seconds)} {what}s that took longest by themselves, with the module that "
        "each worked for most and how much of it was for that one.",
        (what, "calls", "ms (measured)", "share of time", "most for module", "phase", "of its time"),
        tuple(rows),
    )


def operator_table(costs: StepCosts, most: int) -> ReportTable:
    """A row an operator, phase and module of all layers, the ``most`` that move most bytes a step."""
    steps = costs.steps_counted or 1
    totals: dict[tuple[Key, str], Total] = {}
    for place, each in costs.totals.items():
        where = place._replace(module=_of_all_layers(place.module)), each.model
        totals.setdefault(where, Total(each.model)).add(each)
    heaviest = sorted(totals.items(), key=lambda item: -item[1].moved_bytes)[:most]
    return ReportTable(
        "Bytes of a training step by operator",
        f"The {len(heaviest)} of {len(totals)} places that move most, modelled.",
        ("operator", "module", "phase", "calls", "MB read", "MB written", "GFLOP", "source"),
        tuple(
            (
                key.operator,
                key.module or OUTSIDE,
                key.phase,
                total.calls / steps,
                total.read_bytes / steps / 1e6,
                total.written_bytes / steps / 1e6,
                total.flops / steps / 1e9,
                f"modelled: {total.model}",
            )
            for (key, _), total in heaviest
        ),
    )


def _of_all_layers(module: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", module)


def _within_steps(trace: TorchTrace) -> Iterable[Work]:
    return (work for work in trace.work if work.step is not None)


def _sums(works: Iterable[Work], key: Callable[[Work], K]) -> dict[K, float]:
    sums: dict[K, float] = defaultdict(float)
    for work in works:
        sums[key(work)] += work.seconds
    return sums


def _share(energy: Number, share: float) -> float | None:
    return None if energy.value is None else energy.value * share


def _energy_source(energy: Number) -> str:
    return f"{energy.source}: {energy.detail}" if energy.detail else energy.source
