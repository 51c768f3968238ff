"""What every calibration of the command line shares: its device, progress bars, parts to go on from."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from lit_eff.calibration.certify import Progress as Report
from lit_eff.calibration.resume import WorkFolder
from lit_eff.errors import UserError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option ``--device``."""
    text = "runs the model; auto: an NVIDIA GPU where there is one (default: %(default)s)"
    parser.add_argument("--device", choices=DEVICES, default="auto", help=text)


def calibration_device(name: str) -> torch.device:
    """The device that one of ``DEVICES`` means here, told on standard error.

    Raises:
        UserError: ``cuda`` where PyTorch finds no GPU.
    """
    import torch

    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UserError("--device is cuda, and PyTorch finds no NVIDIA GPU here; use --device cpu")
    if there and name != "cpu":
        print(f"calibrating on the GPU ({torch.cuda.get_device_name()})", file=sys.stderr)
        return torch.device("cuda")
    print("calibrating on the CPU" + ("" if there else " (no GPU found)"), file=sys.stderr)
    return torch.device("cpu")


@contextmanager
def resumable(output: Path, command: str) -> Iterator[WorkFolder]:
    """What is generated inside is kept beside ``output`` until all inside has succeeded.

    Args:
        command: what goes on where an interrupted one was.
    """

    said: set[str] = set()

    def found(stage: str, kept: int, sequences: int) -> None:
        if stage not in said:  # a search asks for the same sequences again and again
            print(f"resuming: {kept} of {sequences} {stage} sequences are there already", file=sys.stderr)
        said.add(stage)

    output = output.absolute()  # "." has no name
    work = WorkFolder(output.with_name(f"{output.name}.partial"), found)
    try:
        yield work
    except KeyboardInterrupt:
        if work.path.exists():
            kept = f"lit-eff: what was generated is kept in {work.path}"
            print(f"{kept}; `{command}` with the same options goes on", file=sys.stderr)
        raise
    work.remove()


@contextmanager
def bars() -> Iterator[Report]:
    """Progress bars on standard error, one for each stage of a calibration."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(f"{stage} sequences", total=total)
            bars.update(tasks[stage], completed=done, total=total)  # a search knows no total beforehand

        yield progress
