"""Where in a model, and in which phase of a training step, something ran."""

from __future__ import annotations

from typing import Literal, NamedTuple

Phase = Literal["forward", "backward", "recompute", "optimizer"]
RANGE = "module: "  # begins the name of a module call's range in a torch.profiler trace


class Scope(NamedTuple):
    """Path of the innermost module, "" outside of all, and the phase of a training step.

    ``recompute`` is a module's call within the backward pass, as activation checkpointing makes.
    """

    module: str
    phase: Phase
