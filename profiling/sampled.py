"""Counters of GPUs sampled while a program runs, for a timeline: power, memory in use, and how busy what is.

NVML gives bandwidth and tensor-core utilisation on Hopper and later (its GPM metrics, over the time between
two samples), for the whole GPU and without replay: coarse in time, but of the real run.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from lit_eff.profiling.nvml import Gpu, find_gpus
from lit_eff.profiling.timeline import Sample
from lit_eff.profiling.unavailable import UnavailableError

INTERVAL = 0.1  # seconds; NVML's counters do not support less
MAX_TICKS = 10_000
MIB = 1024**2

# Counter of the timeline: NVML's name of the metric, and what a value is multiplied with.
GPM = {
    "SMs busy, %": ("NVML_GPM_METRIC_SM_UTIL", 1),
    "occupancy, %": ("NVML_GPM_METRIC_SM_OCCUPANCY", 1),
    "tensor cores busy, %": ("NVML_GPM_METRIC_ANY_TENSOR_UTIL", 1),
    "HBM bandwidth, %": ("NVML_GPM_METRIC_DRAM_BW_UTIL", 1),
    "NVLink sent, B/s": ("NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC", MIB),
    "NVLink received, B/s": ("NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC", MIB),
}


class GpuSampler:
    """``with GpuSampler() as sampler: ...`` then ``sampler.samples`` and, for what is missing, ``.notes``.

    Memory is bounded: when ``max_ticks`` are kept, every other one goes and the interval doubles.

    Args:
        clock: seconds from the timeline's start; from entering if None.
        gpus: which of this process's GPUs; None for all.
        interval: seconds between samples.
        max_ticks: how many moments to keep.
    """

    def __init__(
        self,
        clock: Callable[[], float] | None = None,
        *,
        gpus: Sequence[int] | None = None,
        interval: float = INTERVAL,
        max_ticks: int = MAX_TICKS,
    ) -> None:
        self._clock, self._indices = clock, gpus
        self._interval, self._max_ticks = interval, max_ticks
        self._ticks: list[list[Sample]] = []
        self._readers: list[_Reader] = []
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.notes: list[str] = []

    @property
    def samples(self) -> list[Sample]:
        return [sample for tick in self._ticks for sample in tick]

    def __enter__(self) -> GpuSampler:
        try:
            gpus = find_gpus(self._indices)
        except UnavailableError as refusal:
            self.notes.append(f"GPU counters unavailable: {refusal}")
            return self
        if self._clock is None:
            start = time.perf_counter()
            self._clock = lambda: time.perf_counter() - start
        self._readers = [_Reader(gpu) for gpu in gpus]
        self._stopped.clear()
        self._thread = threading.Thread(target=self._run, name="GPU sampler", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._thread is None:
            return
        self._stopped.set()
        self._thread.join()
        self._thread = None
        for reader in self._readers:
            reader.close()
            self.notes += reader.notes
        if not self._ticks:
            self.notes.append(f"no GPU counters: all ended before the first sample, {self._interval:g} s in")

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            self._tick()

    def _tick(self) -> None:
        assert self._clock is not None
        now = self._clock()
        self._ticks.append([sample for reader in self._readers for sample in reader.read(now)])
        if len(self._ticks) >= self._max_ticks:
            del self._ticks[1::2]
            self._interval *= 2


class _Reader:
    """One GPU's counters. What it does not give is noted once, and not asked for again."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.notes: list[str] = []
        self._plain: dict[str, Callable[[], float]] = {
            "power, W": gpu.watts,
            "memory in use, B": gpu.memory_used_bytes,
        }
        self._busy: _Gpm | None = None
        try:
            self._busy = _Gpm(gpu)
        except UnavailableError as refusal:
            self.notes.append(str(refusal))

    def read(self, now: float) -> list[Sample]:
        values: dict[str, float] = {}
        for name, read in list(self._plain.items()):
            try:
                values[name] = read()
            except UnavailableError as refusal:
                self.notes.append(str(refusal))
                del self._plain[name]
        if self._busy is not None:
            try:
                values.update(self._busy.read())
            except UnavailableError as refusal:
                self.notes.append(str(refusal))
                self.close()
                self._busy = None
        return [Sample(f"GPU {self._gpu.index}: {name}", now, value) for name, value in values.items()]

    def close(self) -> None:
        if self._busy is not None:
            self._busy.close()


class _Gpm:
    """NVML's GPM metrics between one reading and the next."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        library = gpu.library
        try:
            supported = library.nvmlGpmQueryDeviceSupport(gpu.handle).isSupportedDevice
            if not supported:
                raise UnavailableError(
                    f"GPU {gpu.index} does not count what its parts do (NVML GPM)",
                    "use a GPU of the Hopper generation or later",
                )
            self._before, self._now = library.nvmlGpmSampleAlloc(), library.nvmlGpmSampleAlloc()
            library.nvmlGpmSampleGet(gpu.handle, self._before)
        except library.NVMLError as error:
            raise self._unavailable(error) from None

    def _unavailable(self, error: Exception) -> UnavailableError:
        return UnavailableError(
            f"NVML gives no GPM metrics of GPU {self._gpu.index}: {error}",
            "update the driver and nvidia-ml-py",
        )

    def read(self) -> dict[str, float]:
        try:
            return self._metrics()
        except self._gpu.library.NVMLError as error:
            raise self._unavailable(error) from None

    def _metrics(self) -> dict[str, float]:
        library = self._gpu.library
        library.nvmlGpmSampleGet(self._gpu.handle, self._now)
        request: Any = library.c_nvmlGpmMetricsGet_t()
        request.version = library.NVML_GPM_METRICS_GET_VERSION
        request.numMetrics = len(GPM)
        request.sample1, request.sample2 = self._before, self._now
        for metric, (name, _) in zip(request.metrics, GPM.values(), strict=False):
            metric.metricId = getattr(library, name)
        library.nvmlGpmMetricsGet(request)
        self._before, self._now = self._now, self._before
        found = zip(request.metrics, GPM.items(), strict=False)
        return {
            counter: metric.value * scale
            for metric, (counter, (_, scale)) in found
            if metric.nvmlReturn == library.NVML_SUCCESS and math.isfinite(metric.value)
        }

    def close(self) -> None:
        for sample in (self._before, self._now):
            self._gpu.library.nvmlGpmSampleFree(sample)
