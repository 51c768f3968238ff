"""Where the time of a persistent decode step goes, by the clocks that its programs note at the barriers.

Shapes: P programs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_eff.kernels.decode_step import DecodeStep
from lit_eff.kernels.decode_step.call import PHASES

RUNS = 5  # the last is reported


def traced_phases(step: DecodeStep) -> dict[str, float]:
    """Microseconds of one step that a program works in each phase and waits after it, over all layers.

    Means over the programs; together they are the whole launch. The last layer's last phase takes the last
    norm along, and the wait before it. Clocks become times by the launch's events.
    """
    assert step.trace is not None
    layers = step.launches[0]
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    for _ in range(RUNS):
        step.row.position.sub_(step.advance)  # to the same place
        first.record()
        layers.run()
        last.record()
    torch.cuda.synchronize()
    return phases_of(step.trace.cpu(), 1e3 * float(first.elapsed_time(last)))


def phases_of(clocks: Tensor, microseconds: float) -> dict[str, float]:
    """``clocks`` (events, P): the start, before and after each barrier, the end."""
    took = (clocks[1:] - clocks[:-1]).double().mean(dim=1)
    took = took * (microseconds / took.sum())
    work, wait = took[0::2], took[1::2]
    found = {"embedding": work[:1], "wait after embedding": wait[:1]}
    for index, name in enumerate(PHASES):
        found[name] = work[1 + index :: len(PHASES)]
        found[f"wait after {name}"] = wait[1 + index :: len(PHASES)]
    return {name: float(times.sum()) for name, times in found.items()}
