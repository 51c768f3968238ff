"""What a device could do at best, for utilisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Peak:
    """``flops``: dense operations a second at a precision, or ``None`` for the ``reason`` given."""

    flops: float | None
    reason: str


def peak_flops(device: torch.device, precision: str) -> Peak:
    """The data-sheet peak of matrix products at a Lightning precision (no sparsity)."""
    return Peak(None, f"no peak is known for device {device.type.upper()}")
