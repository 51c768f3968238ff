"""Energy of a stretch of work, by the best meter that the machine has, and said by which.

GPUs: the driver's energy counter, else its power readings integrated. CPUs: RAPL's counters. Without a meter,
watts that the caller declares times seconds, labelled modelled; without those, unavailable with the reason.

Sources: NVML API reference; Linux kernel, power capping framework (``/sys/class/powercap``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from lit_eff.errors import UserError
from lit_eff.profiling.nvml import Gpu, find_gpus
from lit_eff.profiling.traffic import Number
from lit_eff.profiling.unavailable import UnavailableError

RAPL = Path("/sys/class/powercap")
POWER_INTERVAL = 0.1  # seconds between power readings


class Meter(Protocol):
    """Counts joules from its making on. ``detail`` says how."""

    detail: str

    def joules(self) -> float: ...

    def stop(self) -> None: ...


class EnergyMeter:
    """``with EnergyMeter("cuda") as meter: ...`` then ``meter.joules``; read it inside for the energy so far.

    Args:
        device: ``cuda`` for the boards of GPUs, summed; ``cpu`` for processor packages.
        gpus: which of this process's GPUs; None for all, those of its machine alone in a run over several.
        watts: what to assume where nothing measures: of all the GPUs (or of the CPU) together, at full load.
        utilisation: of ``watts``, the share to assume.

    Raises:
        UserError: for watts or a utilisation that cannot be.
    """

    def __init__(
        self,
        device: Literal["cuda", "cpu"],
        *,
        gpus: Sequence[int] | None = None,
        watts: float | None = None,
        utilisation: float = 1.0,
    ) -> None:
        if watts is not None and watts <= 0:
            raise UserError(f"watts {watts:g}; expected more than 0, what the boards draw at full load")
        if not 0 < utilisation <= 1:
            raise UserError(f"utilisation {utilisation:g}; expected a share above 0 and at most 1")
        self._device, self._gpus = device, gpus
        self._watts, self._utilisation = watts, utilisation
        self._meter: Meter | None = None
        self._refusal: UnavailableError | None = None
        self._start = 0.0
        self._final: Number | None = None

    def __enter__(self) -> EnergyMeter:
        self._final = self._refusal = None
        try:
            self._meter = gpu_meter(find_gpus(self._gpus)) if self._device == "cuda" else RaplMeter()
        except UnavailableError as refusal:
            self._meter, self._refusal = None, refusal
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self._final = self._read()
        if self._meter is not None:
            self._meter.stop()

    @property
    def joules(self) -> Number:
        """Energy from entering to now, or to leaving."""
        return self._final or self._read()

    def _read(self) -> Number:
        if self._meter is not None:
            try:
                return Number(self._meter.joules(), "measured", self._meter.detail)
            except UnavailableError as refusal:  # lost on the way
                return refusal.number()
        assert self._refusal is not None, "read an EnergyMeter inside or after its with block"
        if self._watts is None:
            return self._refusal.number()
        seconds = time.perf_counter() - self._start
        return Number(
            self._watts * self._utilisation * seconds,
            "modelled",
            f"{self._watts:g} W x utilisation {self._utilisation:g} x time; no meter: {self._refusal.reason}",
        )


def gpu_meter(gpus: Sequence[Gpu]) -> Meter:
    """The energy counters of ``gpus``, or their power integrated if one of them lacks a counter.

    Raises:
        UnavailableError: if they tell neither.
    """
    try:
        return CounterMeter(gpus)
    except UnavailableError:
        return PowerMeter(gpus)


class CounterMeter:
    """The driver's energy counters, which it updates every few tens of milliseconds."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self._gpus = gpus
        self.detail = f"NVML energy counter, {_number_of(gpus)}"
        self._before = self._now()

    def joules(self) -> float:
        return self._now() - self._before

    def stop(self) -> None: ...

    def _now(self) -> float:
        return sum(gpu.joules() for gpu in self._gpus)


class PowerMeter:
    """Power readings by a thread, integrated by trapezia."""

    def __init__(
        self,
        gpus: Sequence[Gpu],
        interval: float = POWER_INTERVAL,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._gpus, self._interval, self._clock = gpus, interval, clock
        self.detail = f"NVML power every {interval:g} s, integrated, {_number_of(gpus)}"
        self._sum = 0.0
        self._refusal: UnavailableError | None = None
        self._last = (clock(), self._watts())
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power meter", daemon=True)
        self._thread.start()

    def joules(self) -> float:
        self._advance()
        if self._refusal is not None:
            raise self._refusal
        return self._sum

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            self._advance()

    def _advance(self) -> None:
        with self._lock:
            try:
                (before, watts), now = self._last, (self._clock(), self._watts())
            except UnavailableError as refusal:  # a gap in the integral spoils it
                self._refusal = refusal
                return
            self._sum += (now[0] - before) * (watts + now[1]) / 2
            self._last = now

    def _watts(self) -> float:
        return sum(gpu.watts() for gpu in self._gpus)


class RaplMeter:
    """The processor packages' own counters; they start again at a limit, which takes minutes at the least.

    Raises:
        UnavailableError: if there are none, or only root may read them.
    """

    def __init__(self) -> None:
        zones = sorted(RAPL.glob("intel-rapl:[0-9]*"))  # AMD's too; a package's parts are named 0:1
        self._packages = [zone for zone in zones if zone.name.count(":") == 1]
        if not self._packages:
            raise UnavailableError(
                f"this machine shows no RAPL energy counters in {RAPL}", "declare the CPU's watts instead"
            )
        self.detail = f"RAPL, {len(self._packages)} CPU package{'s' * (len(self._packages) > 1)}, no memory"
        try:
            self._limits = [self._read(zone, "max_energy_range_uj") for zone in self._packages]
            self._last = [self._read(zone, "energy_uj") for zone in self._packages]
        except OSError as error:
            raise UnavailableError(
                f"RAPL energy counters are not readable: {error.strerror}",
                f"make {self._packages[0] / 'energy_uj'} readable, or declare the CPU's watts",
            ) from None
        self._sum = 0

    def joules(self) -> float:
        now = [self._read(zone, "energy_uj") for zone in self._packages]
        for before, after, limit in zip(self._last, now, self._limits, strict=True):
            self._sum += after - before if after >= before else after - before + limit
        self._last = now
        return self._sum / 1e6

    def stop(self) -> None: ...

    @staticmethod
    def _read(zone: Path, name: str) -> int:
        return int((zone / name).read_text(encoding="ascii"))


def _number_of(gpus: Sequence[Gpu]) -> str:
    return f"{len(gpus)} GPU{'s' * (len(gpus) > 1)}"
