"""What a device could do at best, for utilisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lit_eff.profiling.devices import find_device


@dataclass(frozen=True)
class Peak:
    """``flops``: operations a second, or ``None`` for the ``reason`` given."""

    flops: float | None
    reason: str


def peak_flops(device: torch.device, precision: str) -> Peak:
    """The device table's peak of dense matrix products at a Lightning precision (``bf16-mixed``, ...)."""
    if device.type != "cuda":
        return Peak(None, f"the table of peaks has no {device.type.upper()}")
    name = torch.cuda.get_device_name(device)
    found = find_device(name)
    if found is None:
        return Peak(None, f"the table of peaks has no {name!r}")
    dtype = matmul_dtype(precision)
    if dtype not in found.peaks:
        return Peak(None, f"the table of peaks has no {dtype} for {name!r}")
    return Peak(found.peak(dtype), f"{found.name}, {dtype}")


def matmul_dtype(precision: str) -> str:
    """The arithmetic of matrix products, by the device table's name."""
    if precision.startswith("bf16"):
        return "bfloat16"
    if precision.startswith("16"):
        return "float16"
    if precision.startswith("32"):
        return "float32" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return precision
