"""A training step as a CUDA graph: forward, backward and optimizer without the host.

On hosts that are slow beside the GPU a compiled step waits for its launches; a replayed one does not.
Shapes: B batch, T length.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class StepGraph:
    """Replays ``step`` on new tokens (B, T).

    Capturing runs three steps first: the optimizer's state must exist before, or a replay would make it anew.
    """

    def __init__(self, step: Callable[[Tensor], Tensor], tokens_BT: Tensor) -> None:
        self._tokens_BT = tokens_BT.clone()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step(self._tokens_BT)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = step(self._tokens_BT)

    def __call__(self, tokens_BT: Tensor) -> Tensor:
        """The loss, still on the device."""
        self._tokens_BT.copy_(tokens_BT)
        self._graph.replay()
        return self._loss.clone()
