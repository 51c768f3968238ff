"""The roofline (Williams et al. 2009): the least time some work can take on a device, and what bounds it."""

from __future__ import annotations

from dataclasses import dataclass

from lit_eff.profiling.devices import Device


@dataclass(frozen=True)
class Roofline:
    """Work placed under a device's roof. Intensities are FLOP a byte of HBM traffic, times are seconds."""

    intensity: float
    ridge: float
    compute_seconds: float
    memory_seconds: float

    @property
    def seconds(self) -> float:
        """No implementation can be faster: the slower of arithmetic and traffic, perfectly overlapped."""
        return max(self.compute_seconds, self.memory_seconds)

    @property
    def bound(self) -> str:
        """``compute`` or ``memory``."""
        return "compute" if self.compute_seconds >= self.memory_seconds else "memory"


def roofline(flops: float, hbm_bytes: float, device: Device, dtype: str) -> Roofline:
    """Place ``flops`` at ``dtype``'s dense peak and ``hbm_bytes`` at full bandwidth on ``device``.

    Raises:
        UserError: if the device has no such arithmetic.
        ValueError: if there is no traffic or a negative amount of work.
    """
    if hbm_bytes <= 0 or flops < 0:
        raise ValueError(f"roofline of {flops} FLOP and {hbm_bytes} bytes")
    peak = device.peak(dtype)
    return Roofline(
        intensity=flops / hbm_bytes,
        ridge=peak / device.hbm_bandwidth,
        compute_seconds=flops / peak,
        memory_seconds=hbm_bytes / device.hbm_bandwidth,
    )
