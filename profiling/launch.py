"""A Triton launch as a value, so that one description can be run, counted or compiled without a device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Launch:
    """One kernel with its grid and every argument by name.

    ``kernel`` is what ``@triton.jit`` returned; ``arguments`` maps parameter names to tensors, numbers and
    constexpr values. Nothing happens until :meth:`run`.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any] = field(repr=False)
    num_warps: int = 4
    num_stages: int = 3
    max_registers: int | None = None  # a thread; what warp-specialised kernels share out among their warps
    early: bool = (
        False  # may start before the launch ahead of it ends; the kernel waits itself (from sm_90 on)
    )
    cooperative: bool = False  # starts when all programs fit beside what else runs: they wait for one another

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)

    @property
    def options(self) -> dict[str, Any]:
        """What Triton takes beside the kernel's own arguments."""
        options: dict[str, Any] = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if self.max_registers is not None:
            options["maxnreg"] = self.max_registers
        if self.early:
            options["launch_pdl"] = True  # programmatic dependent launch
        if self.cooperative:
            options["launch_cooperative_grid"] = True
        return options

    def run(self) -> Any:
        """Launch on the current device and stream, or in the interpreter; returns what Triton returns."""
        return self.kernel[self.grid](**self.arguments, **self.options)
