"""Times that can be compared: contenders take turns, the L2 cache is cold, launches are hidden alike.

One sample: streams of reads past the L2 cache (which also give the host a head start, so that the GPU never
waits for Python, autograd or a launch), an event, the function, an event. Contenders take turns, in a new
random order each round, so that clocks and temperature drift over all of them alike.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

L2_SWEEPS = 40  # L2 sizes that a sweep reads: 2 GB on an H100, 0.7 ms
HEAD_START = 4  # sweeps ahead of a sample: longer than any contender's host side, on a busy host too


@dataclass(frozen=True)
class Sample:
    """Times of one contender."""

    milliseconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def noise(self) -> float:
        """Relative half-width of a 95% interval of the median, from the median absolute deviation.

        For near-normal samples the median's standard error is 1.2533 sigma / sqrt(n), and sigma is 1.4826
        times the deviation.
        """
        median = self.median
        deviation = statistics.median(abs(each - median) for each in self.milliseconds)
        return 1.96 * 1.2533 * 1.4826 * deviation / math.sqrt(len(self.milliseconds)) / median


@dataclass(frozen=True)
class Replay:
    """A function to time: a captured graph, and the owner of its tensors, as a graph keeps none alive."""

    graph: torch.cuda.CUDAGraph
    uses: object

    def __call__(self) -> None:
        self.graph.replay()


class Stopwatch(Protocol):
    """Times one run of a function, in milliseconds."""

    def time(self, function: Callable[[], object]) -> float: ...


class CudaStopwatch:
    """Events on the current device, each sample after a sweep of reads through a buffer far above the L2."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        free, _ = torch.cuda.mem_get_info()
        self.sweep_bytes = min(L2_SWEEPS * int(properties.L2_cache_size), free // 8)
        self._buffer = torch.zeros(self.sweep_bytes // 4, device="cuda")
        self._start, self._stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    def sweep(self) -> Tensor:
        """Reads, not writes: dirty lines would be written back within the sample."""
        return self._buffer.sum()

    def time(self, function: Callable[[], object]) -> float:
        for _ in range(HEAD_START):
            self.sweep()
        self._start.record()
        function()
        self._stop.record()
        self._stop.synchronize()
        return float(self._start.elapsed_time(self._stop))


def interleaved(
    functions: Mapping[str, Callable[[], object]], rounds: int, stopwatch: Stopwatch, *, warm_up: int = 2
) -> dict[str, Sample]:
    """Time the functions in turns: ``warm_up`` rounds unread, then ``rounds`` rounds."""
    order = list(functions)
    shuffle = random.Random(0).shuffle
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warm_up + rounds):
        shuffle(order)
        for name in order:
            milliseconds = stopwatch.time(functions[name])
            if turn >= warm_up:
                times[name].append(milliseconds)
    return {name: Sample(tuple(each)) for name, each in times.items()}


def tensor_bytes(value: Any) -> int:
    """Bytes of a tensor or of a sequence's tensors."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(tensor_bytes, value)) if isinstance(value, tuple | list) else 0


def peak_extra_bytes(function: Callable[[], object]) -> int:
    """Most memory that ``function`` held on the GPU, beyond what was there before and what it returns."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - tensor_bytes(result)


def ceilings(stopwatch: CudaStopwatch, rounds: int) -> dict[str, float]:
    """What this GPU reaches in this run: a bfloat16 product of 8192^3, a copy (read + written), reads."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(stopwatch.sweep_bytes, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    samples = interleaved(
        {"product": lambda: a @ b, "copy": lambda: target.copy_(source), "reads": stopwatch.sweep},
        rounds,
        stopwatch,
    )
    return {
        "matmul_tflops": 2 * 8192**3 / samples["product"].median / 1e9,
        "copy_gb_per_second": 2 * source.numel() / samples["copy"].median / 1e6,
        "read_gb_per_second": stopwatch.sweep_bytes / samples["reads"].median / 1e6,
    }
