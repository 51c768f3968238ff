"""A stand-in for the module ``pynvml``: two GPUs of steady power whose clock the test turns."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

UUIDS = ("GPU-aaaa", "GPU-bbbb")
WATTS = (200.0, 300.0)


class NVMLError(Exception):
    """As pynvml's."""


class FakeNvml(ModuleType):
    """``refuse`` names the functions that fail; ``now`` is the time in seconds at which the others answer."""

    NVMLError = NVMLError
    NVML_SUCCESS = 0
    NVML_GPM_METRICS_GET_VERSION = 1
    NVML_GPM_METRIC_SM_UTIL = 2
    NVML_GPM_METRIC_SM_OCCUPANCY = 3
    NVML_GPM_METRIC_ANY_TENSOR_UTIL = 5
    NVML_GPM_METRIC_DRAM_BW_UTIL = 10
    NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC = 60
    NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC = 61

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.refuse: set[str] = set()
        self.now = 1000.0
        self.gpm_supported = 1
        self.gpm_samples = 0

    def _asked(self, function: str) -> None:
        if function in self.refuse:
            raise NVMLError("Not Supported")

    def nvmlInit(self) -> None:  # noqa: N802
        self._asked("nvmlInit")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(UUIDS)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        return UUIDS.index(uuid)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        self._asked("nvmlDeviceGetTotalEnergyConsumption")
        return round(WATTS[handle] * self.now * 1e3)  # mJ

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        self._asked("nvmlDeviceGetPowerUsage")
        return round(WATTS[handle] * 1e3)  # mW

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        self._asked("nvmlDeviceGetMemoryInfo")
        return SimpleNamespace(used=(handle + 1) << 30)

    def nvmlGpmQueryDeviceSupport(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(isSupportedDevice=self.gpm_supported)

    def nvmlGpmSampleAlloc(self) -> Any:  # noqa: N802
        self.gpm_samples += 1
        return SimpleNamespace(of=None)

    def nvmlGpmSampleFree(self, sample: Any) -> None:  # noqa: N802
        self.gpm_samples -= 1

    def nvmlGpmSampleGet(self, handle: int, sample: Any) -> Any:  # noqa: N802
        sample.of = handle
        return sample

    def c_nvmlGpmMetricsGet_t(self) -> Any:  # noqa: N802
        blank = [SimpleNamespace(metricId=0, nvmlReturn=0, value=0.0) for _ in range(100)]
        return SimpleNamespace(version=0, numMetrics=0, sample1=None, sample2=None, metrics=blank)

    def nvmlGpmMetricsGet(self, request: Any) -> Any:  # noqa: N802
        """Each metric's value is its number, but NVLink's, which GPU 1 does not have."""
        self._asked("nvmlGpmMetricsGet")
        assert request.version == self.NVML_GPM_METRICS_GET_VERSION
        assert request.sample1.of == request.sample2.of
        for metric in request.metrics[: request.numMetrics]:
            metric.value = float(metric.metricId)
            metric.nvmlReturn = 3 if metric.metricId >= 60 and request.sample1.of == 1 else 0
        return request
