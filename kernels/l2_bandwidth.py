"""Measures how fast a GPU's L2 cache serves reads: a ceiling that vendors rarely print."""

from __future__ import annotations

from statistics import median

import torch

from lit_eff.profiling.traffic import Number

SHARE = 4  # a quarter of L2: it fits twice into one of the halves that some GPUs split theirs in
PASSES = 256  # within one kernel, so that its launch does not count
REPETITIONS = 11


def measure_l2_bandwidth(device: torch.device) -> Number:
    """Bytes a second, attained by summing a quarter of the L2 cache again and again.

    L2 may be faster than this; what another kernel attains above it shows so in a roofline.
    """
    size = torch.cuda.get_device_properties(device).L2_cache_size // SHARE
    passes = torch.ones(size // 4, dtype=torch.float32, device=device).expand(PASSES, -1)
    seconds = []
    for _ in range(1 + REPETITIONS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        passes.sum(dim=1)
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    attained = passes.numel() * passes.element_size() / median(seconds[1:])
    return Number(attained, "measured", f"sums of {size:,} B within L2, CUDA events, median of {REPETITIONS}")
