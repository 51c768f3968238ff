"""A process that counts, models, compiles, times or runs catalogued operations.

Triton chooses between its interpreter and a GPU on import, and a profiler watches a process from its start.
``python -m lit_eff.kernels.worker count|model|compile|time|run REQUESTS`` prints a JSON list of records for
each request.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

import torch

from lit_eff.errors import UserError
from lit_eff.kernels.catalogue import get_operation
from lit_eff.kernels.timing import time_launches
from lit_eff.profiling.devices import get_device
from lit_eff.profiling.modelled import ModelledLaunch
from lit_eff.profiling.records import Numbers, compiled_numbers, count_launches, modelled_numbers
from lit_eff.profiling.traffic import KernelTraffic

Work = Literal["count", "model", "compile", "time", "run"]


OLD_INTERPRETER = "only 0-dimensional arrays can be converted"


class Request(NamedTuple):
    """An operation's case, and the device (a name of the device table) whose tiles and limits are meant."""

    operation: str
    case: dict[str, Any]
    device: str


def request(operation: str, case: Any, device: str) -> Request:
    """For a case of the operation's own class."""
    return Request(operation, asdict(case), device)


def records(work: Work, asked: Request) -> list[KernelTraffic]:
    """A record a launch, made in this process: counted beside modelled, modelled, compiled or timed.

    To run gives records without numbers: those are a profiler's, which watches the process.
    """
    operation, device = get_operation(asked.operation), get_device(asked.device)
    case = operation.case(**asked.case)

    def build(place: str) -> list[ModelledLaunch]:
        torch.manual_seed(0)
        return operation.launches(case, torch.device(place), device.capability)

    if work == "count":
        return count_launches(build("cpu"), asked.case)
    launches = build("meta")
    numbers: list[Numbers] = [{} for _ in launches]
    if work == "model":
        numbers = [modelled_numbers(each.traffic, each.flops) for each in launches]
    elif work == "compile":
        numbers = [compiled_numbers(each, device) for each in launches]
    elif work == "time":
        seconds = time_launches(lambda: [each.launch for each in build("cuda")])
        numbers = [{"seconds": (number,)} for number in seconds]
    else:
        _run(lambda: build("cuda"))
    return [
        KernelTraffic(each.launch.name, asked.case, found)
        for each, found in zip(launches, numbers, strict=True)
    ]


def _run(build: Callable[[], list[ModelledLaunch]]) -> None:
    """Compile by running once, then run on fresh tensors, which is all that a profiler is to see."""
    for each in build():
        each.launch.run()
    launches = build()
    torch.cuda.synchronize()
    with torch.cuda.profiler.profile():
        for each in launches:
            each.launch.run()
        torch.cuda.synchronize()


def command(work: Work, requests: Sequence[Request]) -> list[str]:
    """What to run for ``requests``, in :func:`environment`."""
    return [sys.executable, "-m", "lit_eff.kernels.worker", work, json.dumps(requests)]


def environment(work: Work) -> dict[str, str]:
    """This process's environment, but with Triton's interpreter as the work needs."""
    return {**os.environ, "TRITON_INTERPRET": "1" if work == "count" else "0"}


def in_fresh_process(work: Work, requests: Sequence[Request]) -> list[list[KernelTraffic]]:
    """As :func:`records` for each request, in one process that imports Triton as the work needs.

    Raises: UserError: with the process's last line, if it fails.
    """
    done = subprocess.run(
        command(work, requests),
        env=environment(work),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        if OLD_INTERPRETER in last:
            last = (
                "the interpreter of Triton 3.6 needs NumPy before 2.4; install one, or Triton 3.7.1 or later"
            )
        raise UserError(f"to {work} {', '.join(each.operation for each in requests)} failed: {last}")
    return [
        [KernelTraffic.from_dict(record) for record in json.loads(line)] for line in done.stdout.splitlines()
    ]


def main(argv: Sequence[str]) -> None:
    work: Any = argv[0]
    for each in json.loads(argv[1]):
        print(json.dumps([record.to_dict() for record in records(work, Request(*each))]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
