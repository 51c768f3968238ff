"""Two ranks on this machine, forked from the test: torch and Lightning are imported already."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORLD = 2


def start_ranks(function: Callable[..., Any], *args: Any) -> list[Any]:
    """Start ``function(*args)`` on both ranks, as a launcher outside of Lightning does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_run, args=(function, args, rank, port), daemon=True) for rank in range(WORLD)
    ]
    for process in processes:
        process.start()
    return processes


def exit_codes(processes: list[Any], seconds: float = 120.0) -> list[int | None]:
    for process in processes:
        process.join(seconds)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in processes]


def run_ranks(function: Callable[..., Any], *args: Any) -> None:
    """Run ``function(*args)`` on both ranks; fails if either does."""
    assert exit_codes(start_ranks(function, *args)) == [0] * WORLD


def _run(function: Callable[..., Any], args: tuple[Any, ...], rank: int, port: int) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        WORLD_SIZE=str(WORLD),
        LOCAL_RANK=str(rank),
        NODE_RANK="0",
    )
    try:
        function(*args)
    except Exception:
        traceback.print_exc(file=sys.__stderr__)
        raise


def alone(path: Path) -> bool:
    """Whether nothing hidden is left beside a checkpoint."""
    return not list(path.parent.glob(".*"))
