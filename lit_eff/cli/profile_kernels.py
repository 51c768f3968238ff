"""Every shipped kernel counted, modelled, compiled and measured: the part ``kernels``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from lit_eff.cli.profile_job import Job
from lit_eff.errors import UserError
from lit_eff.kernels.catalogue import FOLDERS, Operation, get_operation
from lit_eff.kernels.measure import add_measurements
from lit_eff.kernels.worker import Request, in_fresh_process, records, request
from lit_eff.profiling.bracket import bracket, bracket_table
from lit_eff.profiling.records import COUNTED, complete, merge
from lit_eff.profiling.report import Findings, ReportTable
from lit_eff.profiling.traffic import KernelTraffic

LARGE = "counted at small sizes only: the interpreter would take hours at this one"
GLUON = "Gluon kernels do not run in Triton's interpreter"


def kernels(job: Job) -> Findings:
    """Small cases counted beside their I/O models; a size of real use modelled, compiled and measured."""
    settings, found = job.profile.kernels, Findings()
    operations = [get_operation(name) for name in settings.operations or FOLDERS]
    small = [
        request(operation.name, case, job.device.name)
        for operation in operations
        if not operation.gluon
        for case in operation.small[: settings.cases]
    ]
    with job.console.status("Counting loads and stores in Triton's interpreter"):
        try:
            found.records += chain.from_iterable(in_fresh_process("count", small))
        except UserError as error:
            found.notes.append(f"counted traffic unavailable: {error}")
    large = _at_typical_sizes(operations, job, found)
    found.records += large
    found.tables.append(resource_table(large))
    if any(bracket(record) for record in large):
        found.tables.append(bracket_table(large))
    return found


def _at_typical_sizes(operations: Sequence[Operation], job: Job, found: Findings) -> list[KernelTraffic]:
    """A record a launch; each quantity that is missing says why. Where an operation fails, a note does."""
    requests = [request(each.name, each.typical, job.device.name) for each in operations]
    with job.console.status(f"Compiling for {job.device.name}"):
        compiled = _compiled(requests, found)
    done: list[KernelTraffic] = []
    for operation, asked, resources in zip(operations, requests, compiled, strict=True):
        known = records("model", asked)
        if resources:
            known = [
                replace(one, numbers=merge(one.numbers, other.numbers))
                for one, other in zip(known, resources, strict=True)
            ]
        if job.profile.measure:
            with job.console.status(f"Measuring {operation.name}"):
                try:
                    (known,) = add_measurements([known], [asked])
                except UserError as error:
                    found.notes.append(f"{operation.name} is not measured: {error}")
        reason = GLUON if operation.gluon else LARGE
        done += [complete(record, dict.fromkeys(COUNTED, reason)) for record in known]
    return done


def _compiled(requests: Sequence[Request], found: Findings) -> list[list[KernelTraffic]]:
    """What each takes of an SM, in one process; one by one where one of them spoils it for all."""
    try:
        return in_fresh_process("compile", requests)
    except UserError as error:
        if len(requests) == 1:
            found.notes.append(f"SRAM, registers and occupancy unavailable: {error}")
            return [[]]
        return [_compiled([each], found)[0] for each in requests]


def resource_table(records: Sequence[KernelTraffic]) -> ReportTable:
    """What each launch takes of an SM."""
    quantities = (
        "shared_memory_bytes",
        "registers_per_thread",
        "spill_bytes",
        "programs_per_sm",
        "occupancy",
    )
    rows = []
    for record in records:
        numbers = [record.numbers.get(name, ()) for name in quantities]
        rows.append((record.kernel, *(each[0].value if each else None for each in numbers)))
    return ReportTable(
        "SRAM, registers and occupancy",
        "At sizes of real use, compiled without running (source: counted by the compiler).",
        ("kernel", "SRAM, B", "registers", "spills, B", "programs an SM", "occupancy"),
        tuple(rows),
    )
