"""Measures catalogued operations on this machine's GPU: bytes by ncu, time by CUDA events.

``python -m lit_eff.kernels.measure --out FOLDER [operation ...]`` prints a line for every launch at its
typical size, bounds and measurement side by side, and writes the records to ``FOLDER/measured.json``.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lit_eff.errors import UserError
from lit_eff.files import atomic_path
from lit_eff.kernels.catalogue import FOLDERS, get_operation
from lit_eff.kernels.worker import Request, command, environment, in_fresh_process, records, request
from lit_eff.profiling.bracket import bracket_table
from lit_eff.profiling.devices import get_device
from lit_eff.profiling.measured import METRICS, MeasuredKernel, measure_command
from lit_eff.profiling.records import merge
from lit_eff.profiling.text_table import as_text
from lit_eff.profiling.traffic import KernelTraffic
from lit_eff.profiling.unavailable import UnavailableError

COUNTERS = tuple(name for name in METRICS if name != "seconds")  # ncu's time is that of a replay
NO_GPU = UnavailableError("no NVIDIA GPU that CUDA can use", "measure on a machine with one")


def measure_operations(requests: Sequence[Request]) -> list[list[KernelTraffic]]:
    """A record a launch of each request, measured beside modelled; see :func:`add_measurements`."""
    return add_measurements([records("model", each) for each in requests], requests)


def add_measurements(
    known: Sequence[Sequence[KernelTraffic]], requests: Sequence[Request]
) -> list[list[KernelTraffic]]:
    """The records of ``requests``, with seconds by CUDA events and counters by ncu for each launch.

    What cannot be measured here (no GPU, no ncu, no permission) is ``unavailable`` and says why.

    Raises:
        UserError: if the launches fail, or ncu did not see them one by one.
    """
    if not torch.cuda.is_available():
        return _without(known, ("seconds", *COUNTERS), NO_GPU)
    timed = [
        [
            replace(record, numbers=merge(record.numbers, time.numbers))
            for record, time in zip(*each, strict=True)
        ]
        for each in zip(known, in_fresh_process("time", requests), strict=True)
    ]
    try:
        kernels = measure_command(
            command("run", requests), metrics=COUNTERS, from_start=False, env=environment("run")
        )
    except UnavailableError as refusal:
        return _without(timed, COUNTERS, refusal)
    return attach(timed, kernels)


def _without(
    known: Sequence[Sequence[KernelTraffic]], quantities: Sequence[str], refusal: UnavailableError
) -> list[list[KernelTraffic]]:
    """The records, with the reason for what could not be measured beside what others say of it."""
    reasons = {quantity: (refusal.number(),) for quantity in quantities}
    return [[replace(record, numbers=merge(record.numbers, reasons)) for record in each] for each in known]


def attach(
    known: Sequence[Sequence[KernelTraffic]], kernels: Sequence[MeasuredKernel]
) -> list[list[KernelTraffic]]:
    """The records with the counters of their launches, matched one by one in order; other kernels are left.

    Raises:
        UserError: if the kernels are not those of the records, in their order.
    """
    expected = [record.kernel for each in known for record in each]
    own = [kernel for kernel in kernels if kernel.kernel in expected]
    if [kernel.kernel for kernel in own] != expected:
        seen = [kernel.kernel for kernel in kernels]
        raise UserError(f"ncu saw kernels {seen}, expected {expected}; measure the operations one by one")
    remaining = iter(own)
    return [
        [replace(record, numbers=merge(record.numbers, next(remaining).numbers)) for record in each]
        for each in known
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(prog="python -m lit_eff.kernels.measure", description=__doc__)
    parser.add_argument("operations", nargs="*", metavar="operation", help="of the catalogue; all if none")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    device = get_device(torch.cuda.get_device_name()).name
    requests = [request(name, get_operation(name).typical, device) for name in options.operations or FOLDERS]
    measured, failures = _measure_each(requests)
    print(as_text(bracket_table([record for found in measured.values() for record in found])))
    for name, failure in failures.items():
        print(f"{name} failed: {failure}")
    with atomic_path(options.out / "measured.json") as file:
        values = {name: [record.to_dict() for record in found] for name, found in measured.items()}
        file.write_text(json.dumps({"device": device, "records": values, "failures": failures}, indent=1))
    return 1 if failures else 0


def _measure_each(requests: Sequence[Request]) -> tuple[dict[str, list[KernelTraffic]], dict[str, str]]:
    """Records by operation, and why those that failed did. One that fails ends the process of all."""
    names = [each.operation for each in requests]
    try:
        return dict(zip(names, measure_operations(requests), strict=True)), {}
    except UserError as error:
        if len(requests) == 1:
            return {}, {names[0]: str(error)}
    measured: dict[str, list[KernelTraffic]] = {}
    failures: dict[str, str] = {}
    for each in requests:
        found, failed = _measure_each([each])
        measured.update(found)
        failures.update(failed)
    return measured, failures


if __name__ == "__main__":
    raise SystemExit(main())
