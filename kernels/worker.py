"""A process that counts, compiles or runs catalogued operations: Triton chooses its interpreter on import.

``python -m lit_eff.kernels.worker count|compile|run REQUEST`` prints one JSON list of records an operation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

import torch

from lit_eff.errors import UserError
from lit_eff.kernels.catalogue import get_operation
from lit_eff.profiling.devices import get_device
from lit_eff.profiling.records import compiled_numbers, count_launches, modelled_numbers
from lit_eff.profiling.traffic import KernelTraffic

Work = Literal["count", "compile", "run"]


class Request(NamedTuple):
    """An operation's case, and the device (a name of the device table) whose tiles and limits are meant."""

    operation: str
    case: dict[str, Any]
    device: str


def request(operation: str, case: Any, device: str) -> Request:
    """For a case of the operation's own class."""
    return Request(operation, asdict(case), device)


def records(work: Work, asked: Request) -> list[KernelTraffic]:
    """A record a launch, made in this process."""
    operation, device = get_operation(asked.operation), get_device(asked.device)
    case = operation.case(**asked.case)
    place = torch.device({"count": "cpu", "compile": "meta", "run": "cuda"}[work])
    torch.manual_seed(0)
    launches = operation.launches(case, place, device.capability)
    if work == "count":
        return count_launches(launches, asked.case)
    if work == "run":
        for each in launches:
            each.launch.run()
    return [
        KernelTraffic(
            each.launch.name,
            asked.case,
            compiled_numbers(each, device)
            if work == "compile"
            else modelled_numbers(each.traffic, each.flops),
        )
        for each in launches
    ]


def in_fresh_process(work: Work, requests: Sequence[Request]) -> list[list[KernelTraffic]]:
    """As :func:`records` for each request, in one process that imports Triton as the work needs.

    Raises: UserError: with the process's last line, if it fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", "lit_eff.kernels.worker", work, json.dumps(requests)],
        env={**os.environ, "TRITON_INTERPRET": "1" if work == "count" else "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
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
