"""Builds traffic records from launches: counted in the interpreter, modelled, compiled; merged into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lit_eff.profiling.compiled import compile_launch
from lit_eff.profiling.counted import count_traffic
from lit_eff.profiling.counter import KernelCount
from lit_eff.profiling.devices import Device
from lit_eff.profiling.modelled import ModelledLaunch, Traffic
from lit_eff.profiling.occupancy import occupancy
from lit_eff.profiling.traffic import UNITS, KernelTraffic, Number, Shape

Numbers = dict[str, tuple[Number, ...]]

COUNTED = (
    "read_bytes",
    "written_bytes",
    "atomic_bytes",
    "read_sector_bytes",
    "written_sector_bytes",
    "masked_lanes",
)
OCCUPANCY = ("programs_per_sm", "occupancy")
INTERPRETER = "Triton interpreter"
ADDED = (
    *COUNTED,
    "dram_read_bytes",
    "dram_written_bytes",
    "l2_bytes",
    "shared_read_bytes",
    "shared_written_bytes",
    "flops",
    "seconds",
    "joules",
)


def modelled_numbers(traffic: Traffic, flops: int, formula: str = "I/O model") -> Numbers:
    """What a launch's I/O model says of it."""
    values = {
        "read_bytes": traffic.read_bytes,
        "written_bytes": traffic.written_bytes,
        "atomic_bytes": traffic.atomic_bytes,
        "read_sector_bytes": None if traffic.sectors is None else traffic.sectors - traffic.own,
        "flops": flops or None,
    }
    return {
        name: (Number(value, "modelled", formula),) for name, value in values.items() if value is not None
    }


def counted_numbers(count: KernelCount) -> Numbers:
    """What the interpreter counted of a launch."""
    return {name: (Number(getattr(count, name), "counted", INTERPRETER),) for name in COUNTED}


def compiled_numbers(modelled: ModelledLaunch, device: Device) -> Numbers:
    """What a launch takes of an SM of ``device``, found by compiling it for that device; runs nothing.

    A program that the device cannot hold has no occupancy, but the reason in its place.
    """
    resources = compile_launch(modelled.launch, device.capability)
    detail = f"compiled for {device.name}"
    values = {
        "shared_memory_bytes": resources.shared_memory_bytes,
        "registers_per_thread": resources.registers_per_thread,
        "spill_bytes": resources.spill_store_bytes,
    }
    numbers: Numbers = {name: (Number(value, "counted", detail),) for name, value in values.items()}
    resident = occupancy(
        device, resources.num_warps, resources.registers_per_thread, resources.shared_memory_bytes
    )
    if not resident.programs_per_sm:
        return numbers | dict.fromkeys(OCCUPANCY, (Number(None, "unavailable", resident.sentence),))
    detail = f"{detail}; {resident.sentence}"
    return numbers | {
        "programs_per_sm": (Number(resident.programs_per_sm, "counted", detail),),
        "occupancy": (Number(resident.share, "counted", detail),),
    }


def count_launches(launches: Sequence[ModelledLaunch], shape: Shape) -> list[KernelTraffic]:
    """Run ``launches`` in the interpreter and give a record each, counted beside modelled.

    Raises: UserError: outside the interpreter (``TRITON_INTERPRET=1``).
    """
    with count_traffic() as counts:
        for each in launches:
            each.launch.run()
    return [
        KernelTraffic(
            count.kernel,
            shape,
            merge(counted_numbers(count), modelled_numbers(each.traffic, each.flops)),
            lines=count.lines,
        )
        for count, each in zip(counts, launches, strict=True)
    ]


def together(kernel: str, shape: Shape, parts: Sequence[KernelTraffic]) -> KernelTraffic:
    """One record of kernels that make one result: sums of the quantities that a source gives for all."""
    numbers: Numbers = {}
    for name in ADDED:
        sums = []
        for first in parts[0].numbers.get(name, ()):
            values = [part.get(name, first.source) for part in parts]
            known = [value for value in values if value is not None]
            if len(known) == len(parts):
                sums.append(replace(first, value=sum(known)))
        if sums:
            numbers[name] = tuple(sums)
    return KernelTraffic(kernel, shape, merge(numbers), parts=tuple(parts))


def merge(*sources: Mapping[str, tuple[Number, ...]]) -> Numbers:
    """All numbers of all sources, quantity by quantity, in the order of :data:`UNITS`."""
    found: Numbers = {}
    for name in UNITS:
        numbers = tuple(number for source in sources for number in source.get(name, ()))
        if numbers:
            found[name] = numbers
    return found


def complete(record: KernelTraffic, reasons: Mapping[str, str]) -> KernelTraffic:
    """The record with ``unavailable`` and its reason for each quantity of ``reasons`` that it lacks."""
    missing = {
        name: (Number(None, "unavailable", reason),)
        for name, reason in reasons.items()
        if name not in record.numbers
    }
    return replace(record, numbers=merge(record.numbers, missing))
