"""The ``profile`` section of a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from lit_eff.errors import UserError
from lit_eff.profiling.devices import get_device


@dataclass
class ProfileConfig:
    """What ``lit-eff profile`` records.

    Args: warmup_steps: training steps run before the trace starts, so that it holds no one-time work.
        trace_steps: training steps that torch.profiler records. count_batch: batch of the attention kernel
        counted in the interpreter (heads and head dim are the model's). count_length: its query and key
        length, in tokens; the interpreter takes seconds a thousand tokens. device: GPU whose limits stand
        beside the counts where this machine has none; a name of the device table.
    """

    warmup_steps: int = 2
    trace_steps: int = 3
    count_batch: int = 1
    count_length: int = 256
    device: str = "H100 SXM"

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise UserError(f"profile.warmup_steps is {self.warmup_steps}; expected 0 or more")
        for name in ("trace_steps", "count_batch", "count_length"):
            if getattr(self, name) < 1:
                raise UserError(f"profile.{name} is {getattr(self, name)}; expected 1 or more")
        get_device(self.device)
