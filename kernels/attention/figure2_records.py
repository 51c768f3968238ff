"""Figure 2 as traffic records: a contender and case each, modelled and, on a GPU, measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

from lit_eff.errors import UserError
from lit_eff.kernels.attention.figure2 import (
    CONTENDERS,
    Case,
    Step,
    command,
    modelled,
    seconds,
)
from lit_eff.kernels.attention.io_model import forward_flops
from lit_eff.kernels.attention.tiles import Tiles
from lit_eff.kernels.attention.traffic_model import forward_traffic
from lit_eff.profiling.measured import measure_command
from lit_eff.profiling.records import merge, modelled_numbers
from lit_eff.profiling.traffic import KernelTraffic, Number

PASSES = "forward and backward"
COUNTERS = ("dram_read_bytes", "dram_written_bytes", "l2_bytes")
EVENTS = "CUDA events, median, L2 flushed before each"
# The kernels of each step, as a profiler measured them; raises UserError where none can.
Profiler = Callable[[Sequence[Step]], Sequence[Sequence[KernelTraffic]]]


def by_ncu(steps: Sequence[Step]) -> list[list[KernelTraffic]]:
    """What ncu measured of each kernel of each step, all in one process.

    Raises:
        UserError: without ncu or its permission, or if a step fails.
    """
    kernels: list[list[KernelTraffic]] = [[] for _ in steps]
    for kernel in measure_command(command(steps), metrics=COUNTERS, from_start=False):
        kernels[int(kernel.ranges[0])].append(KernelTraffic(kernel.kernel, {}, kernel.numbers))
    return kernels


def name_of(contender: str) -> str:
    return f"{contender}: {PASSES}"


def figure2_records(
    cases: Sequence[Case], capability: int, *, timed: bool = False, profiler: Profiler | None = None
) -> list[KernelTraffic]:
    """A record a case and contender that anything is known of, with its baseline.

    ``timed`` (on this process's GPU) and ``profiler`` add what is measured to what has a formula.
    """
    measured: dict[Step, KernelTraffic] = {}
    if profiler is not None:
        for name in CONTENDERS:
            steps = [Step(name, case) for case in cases]
            measured.update(zip(steps, _measured(profiler, steps), strict=True))
    records: list[KernelTraffic] = []
    for case in cases:
        steps = [Step(name, case) for name in CONTENDERS]
        found = {each.contender: _record(each, capability, timed, measured.get(each)) for each in steps}
        for name, record in found.items():
            baseline = found.get(CONTENDERS[name].baseline or "")
            if record.numbers:
                records.append(replace(record, baseline=baseline))
    return records


def _record(step: Step, capability: int, timed: bool, measured: KernelTraffic | None) -> KernelTraffic:
    case, traffic = step.case, modelled(step.contender, step.case, capability)
    sources: list[Mapping[str, tuple[Number, ...]]]
    sources = [{"flops": (Number(case.flops, "modelled", "seven matrix products"),)}] if timed else []
    if traffic is not None:
        sources = [modelled_numbers(traffic, case.flops)]
    parts: tuple[KernelTraffic, ...] = ()
    if measured is not None:
        sources.append(measured.numbers)
        parts = measured.parts
    if timed:
        sources.append(_seconds(step))
    return KernelTraffic(name_of(step.contender), asdict(case), merge(*sources), parts=parts)


def tile_records(
    cases: Sequence[tuple[Case, Tiles]], *, timed: bool = False, profiler: Profiler | None = None
) -> list[KernelTraffic]:
    """The Triton forward alone with block sizes of choice, modelled and measured."""
    steps = [Step("flash in Triton", case, tiles) for case, tiles in cases]
    measured = dict(zip(steps, _measured(profiler, steps), strict=True)) if profiler is not None else {}
    records = []
    for step, (case, tiles) in zip(steps, cases, strict=True):
        sources: list[Mapping[str, tuple[Number, ...]]]
        sources = [modelled_numbers(forward_traffic(case.shape, tiles), forward_flops(case.shape))]
        if step in measured:
            sources.append(measured[step].numbers)
        if timed:
            sources.append(_seconds(step))
        shape = {**asdict(case), **asdict(tiles)}
        records.append(KernelTraffic("attention_forward_kernel", shape, merge(*sources)))
    return records


def _seconds(step: Step) -> dict[str, tuple[Number, ...]]:
    """Or why not: a contender may not run here, or not fit in memory."""
    import torch

    try:
        return {"seconds": (Number(seconds(step.make()), "measured", EVENTS),)}
    except (RuntimeError, UserError) as error:
        torch.cuda.empty_cache()
        return {"seconds": (Number(None, "unavailable", str(error).splitlines()[0]),)}


def _measured(profiler: Profiler, steps: Sequence[Step]) -> list[KernelTraffic]:
    """The sums over each step's kernels, started with cold caches, and the kernels; or why there are none."""
    try:
        return [_sums(kernels) for kernels in profiler(steps)]
    except UserError as error:
        if len(steps) == 1:
            missing = (Number(None, "unavailable", str(error)),)
            return [KernelTraffic("", {}, dict.fromkeys(COUNTERS, missing))]
        return [_measured(profiler, [step])[0] for step in steps]  # one of them spoiled it for all


def _sums(kernels: Sequence[KernelTraffic]) -> KernelTraffic:
    detail = f"ncu, {len(kernels)} kernels, caches cold"
    sums = {
        quantity: (
            Number(sum(kernel.get(quantity, "measured") or 0 for kernel in kernels), "measured", detail),
        )
        for quantity in COUNTERS
    }
    return KernelTraffic("", {}, sums, parts=tuple(kernels))
