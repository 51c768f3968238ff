"""What a device is to the kernels: whether Triton can run there, its capability, its multiprocessors."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch

TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETER_FAULT = "Triton's interpreter computes bfloat16 products wrongly; use float32"


@cache
def capability_of(device: torch.device) -> int:
    """10 * major + minor of a CUDA device; 80 for any other: the interpreter has none."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@cache
def multiprocessors(device: torch.device, otherwise: int = 108) -> int:
    """Of a CUDA device; ``otherwise`` without one, by default the A100's."""
    if device.type != "cuda":
        return otherwise
    return torch.cuda.get_device_properties(device).multi_processor_count


def device_obstacle(device: torch.device) -> str | None:
    """Why compiled Triton kernels cannot run on ``device``; None if they can."""
    if not TRITON_INSTALLED:
        return "Triton is not installed (it is part of lit_eff[train], on Linux)"
    if device.type != "cuda":
        return (
            f"the Triton kernel needs a CUDA device, not {device.type} (for tests on a CPU, set "
            "TRITON_INTERPRET=1 before lit_eff is imported)"
        )
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than sm_80 or not from NVIDIA"
    return None
