"""Times launches on a GPU by CUDA events, each from a cold L2 cache and on fresh tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import torch

from lit_eff.profiling.launch import Launch
from lit_eff.profiling.traffic import Number

REPETITIONS = 11
# Read between launches: many times any L2, and so long on the GPU that the host has queued the next launch
# and both of its events before it ends.
FLUSH_BYTES = 1 << 29


def time_launches(build: Callable[[], Sequence[Launch]], repetitions: int = REPETITIONS) -> list[Number]:
    """Seconds of each launch that ``build`` makes, the median of ``repetitions`` on the current GPU.

    ``build`` is called for every repetition: kernels that add to their outputs or count in their workspaces
    find them as in a first call. An event costs the GPU about a microsecond, which is in the figure.
    """
    flush = torch.zeros(FLUSH_BYTES // 4, dtype=torch.float32, device="cuda")
    for launch in build():  # compiles
        launch.run()
    times: list[list[float]] = []
    for _ in range(repetitions):
        launches = build()
        events = [(_event(), _event()) for _ in launches]
        torch.cuda.synchronize()
        for launch, (start, end) in zip(launches, events, strict=True):
            flush.sum()  # a read leaves clean lines: no write-back falls into the time of the next kernel
            start.record()
            launch.run()
            end.record()
        torch.cuda.synchronize()
        times.append([start.elapsed_time(end) / 1e3 for start, end in events])
    detail = f"CUDA events, median of {repetitions}, L2 flushed"
    return [Number(median(each), "measured", detail) for each in zip(*times, strict=True)]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
