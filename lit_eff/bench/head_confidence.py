"""Cells of exit confidence: a few hidden states by the output matrix, bfloat16, beside what has logits.

Peers do less: they find the two largest probabilities, no entropy, no log-sum-exp, no flag.
Shapes: N rows, C model dim, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_eff.bench.measure import Stopwatch
from lit_eff.bench.results import Measurement
from lit_eff.bench.rotated import Contender, copies, measure
from lit_eff.kernels.confidence import ExitConfidence, exit_confidence, exit_confidence_reference

SHAPES = ((49152, 576), (49152, 2048), (128256, 2048), (128256, 4096))  # (V, C)
ROWS = (1, 8, 16)


def linear_softmax_topk(hidden_NC: Tensor, weight_VC: Tensor) -> tuple[Tensor, Tensor]:
    """The two largest probabilities of each row, and their tokens."""
    top = F.linear(hidden_NC, weight_VC).float().softmax(dim=-1).topk(2)
    return top.values, top.indices


@functools.cache
def compiled_peer() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Compiled for each cell: beyond a limit of shapes, which there are more of, it would run eagerly."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, len(cells()))
    return torch.compile(linear_softmax_topk, dynamic=False)


@dataclass(frozen=True)
class ConfidenceCell:
    vocabulary: int
    channels: int
    rows: int
    section: str = "confidence"

    @property
    def label(self) -> str:
        return f"{self.vocabulary} x {self.channels}, {self.rows} row{'s' * (self.rows > 1)}"

    def warm(self) -> None:
        """Compile whatever the contenders compile."""
        hidden_NC = torch.zeros(self.rows, self.channels, device="cuda", dtype=torch.bfloat16)
        weight_VC = torch.zeros(self.vocabulary, self.channels, device="cuda", dtype=torch.bfloat16)
        exit_confidence(hidden_NC, weight_VC)
        compiled_peer()(hidden_NC, weight_VC)

    @torch.inference_mode()
    def run(self, stopwatch: Stopwatch, rounds: int, weights_RVC: Tensor | None = None) -> list[Measurement]:
        """``weights_RVC`` are `copies` of this shape, if there are some already."""
        weights_RVC = copies(self.vocabulary, self.channels) if weights_RVC is None else weights_RVC
        generator = torch.Generator("cuda").manual_seed(1)
        shape = (self.rows, self.channels)
        hidden_NC = 3 * torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=generator)
        thresholds_N = torch.full((self.rows,), 0.5, device="cuda")
        exact = exit_confidence_reference(hidden_NC, weights_RVC[0])

        def fault(got: ExitConfidence) -> str | None:
            for name in ("probability_N", "gap_N", "entropy_N", "lse_N"):
                error = (getattr(got, name) - getattr(exact, name)).abs().max().item()
                if not error <= 1e-3:
                    return f"{name} is off by {error:.1e}"
            return None

        def peer_fault(got: tuple[Tensor, Tensor]) -> str | None:
            error = (got[0][:, 0] - exact.probability_N).abs().max().item()
            return None if error <= 0.02 else f"probability is off by {error:.1e}"

        def ours(weight_VC: Tensor) -> ExitConfidence:
            return exit_confidence(hidden_NC, weight_VC, thresholds=thresholds_N)

        contenders = [
            Contender("ours", ours, fault, ours=True),
            Contender("linear, softmax, topk", lambda w: linear_softmax_topk(hidden_NC, w), peer_fault),
            Contender("the same, compiled", lambda w: compiled_peer()(hidden_NC, w), peer_fault),
        ]
        return measure((self.section, self.label, "pass"), weights_RVC, contenders, stopwatch, rounds)


def cells() -> list[ConfidenceCell]:
    return [ConfidenceCell(*shape, rows) for shape in SHAPES for rows in ROWS]
