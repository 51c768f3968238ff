"""This process's GPUs as NVML sees them (``nvidia-ml-py``): energy, power, memory. Needs no torch."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lit_eff.profiling.unavailable import UnavailableError


@dataclass(frozen=True)
class Gpu:
    """One GPU. ``index`` is that of this process (``cuda:0``); ``library`` is the module ``pynvml``."""

    index: int
    handle: Any
    library: Any

    def joules(self) -> float:
        """Energy since the driver was loaded (Volta and later).

        Raises:
            UnavailableError: if the GPU has no such counter.
        """
        try:
            return int(self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle)) / 1e3
        except self.library.NVMLError as error:
            raise _unavailable(f"the energy counter of GPU {self.index}", error) from None

    def watts(self) -> float:
        """Power of the board now (from Ampere on, averaged over the last second).

        Raises:
            UnavailableError: if the GPU does not tell.
        """
        try:
            return int(self.library.nvmlDeviceGetPowerUsage(self.handle)) / 1e3
        except self.library.NVMLError as error:
            raise _unavailable(f"the power of GPU {self.index}", error) from None

    def memory_used_bytes(self) -> int:
        """Memory in use by all processes.

        Raises:
            UnavailableError: if the GPU does not tell.
        """
        try:
            return int(self.library.nvmlDeviceGetMemoryInfo(self.handle).used)
        except self.library.NVMLError as error:
            raise _unavailable(f"the memory in use of GPU {self.index}", error) from None


def find_gpus(indices: Sequence[int] | None = None) -> list[Gpu]:
    """The GPUs of this process (``CUDA_VISIBLE_DEVICES``) by index, all of them if None.

    Without ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` CUDA lists the fastest first and NVML by bus; the two differ only
    in machines with unlike GPUs.

    Raises:
        UnavailableError: without nvidia-ml-py, a driver, or such GPUs.
    """
    try:
        library = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        raise UnavailableError("nvidia-ml-py is not installed", "run: pip install 'lit_eff[gpu]'") from None
    try:
        library.nvmlInit()  # counts its callers; the driver's library stays loaded until the process ends
        names = _visible(int(library.nvmlDeviceGetCount()))
        wanted = range(len(names)) if indices is None else indices
        missing = [index for index in wanted if index >= len(names)]
        if missing or not names:
            raise UnavailableError(
                f"no GPU {missing[0] if missing else 0} among the {len(names)} visible ones",
                "check CUDA_VISIBLE_DEVICES and nvidia-smi",
            )
        return [Gpu(index, _handle(library, names[index]), library) for index in wanted]
    except library.NVMLError as error:
        raise _unavailable("the GPU's driver", error) from None


def _visible(count: int) -> list[str]:
    """What names this process's GPUs: positions or UUIDs."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return [str(index) for index in range(count)]
    return [name.strip() for name in listed.split(",") if name.strip()]


def _handle(library: Any, name: str) -> Any:
    if name.isdigit():
        return library.nvmlDeviceGetHandleByIndex(int(name))
    return library.nvmlDeviceGetHandleByUUID(name)


def _unavailable(what: str, error: Exception) -> UnavailableError:
    return UnavailableError(f"NVML does not give {what}: {error}", "see nvidia-smi, and the driver's version")
