"""Cells of the skinny linear: a few rows by one weight, bfloat16, beside cuBLAS.

Shapes: N rows, C input channels, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_eff.bench.attention_training import TOLERANCE, relative_error
from lit_eff.bench.measure import Stopwatch
from lit_eff.bench.results import Measurement
from lit_eff.bench.rotated import Contender, copies, measure
from lit_eff.kernels.linear import skinny_linear

# The weights of a 1.1B Llama shape, of bigger ones and of SmolLM2's: (O, C).
SHAPES = (
    (2048, 2048),
    (11264, 2048),
    (2048, 5632),
    (32000, 2048),
    (4096, 4096),
    (28672, 4096),
    (576, 576),
    (49152, 576),
)
ROWS = (1, 8, 16)
MANY_ROWS = (32, 64, 128, 640)  # reported: what reads the weight once no longer bounds them


@dataclass(frozen=True)
class LinearCell:
    outputs: int
    channels: int
    rows: int
    section: str = "linear"

    @property
    def label(self) -> str:
        return f"{self.outputs} x {self.channels}, {self.rows} row{'s' * (self.rows > 1)}"

    def warm(self) -> None:
        """Compile ours."""
        options = {"device": "cuda", "dtype": torch.bfloat16}
        skinny_linear(
            torch.empty(self.rows, self.channels, **options),  # type: ignore[call-overload]
            torch.empty(self.outputs, self.channels, **options),  # type: ignore[call-overload]
        )

    @torch.inference_mode()
    def run(self, stopwatch: Stopwatch, rounds: int, weights_ROC: Tensor | None = None) -> list[Measurement]:
        """``weights_ROC`` are `copies` of this shape, if there are some already."""
        weights_ROC = copies(self.outputs, self.channels) if weights_ROC is None else weights_ROC
        generator = torch.Generator("cuda").manual_seed(1)
        x_NC = torch.randn(self.rows, self.channels, device="cuda", dtype=torch.bfloat16, generator=generator)
        expected_NO = x_NC.float() @ weights_ROC[0].float().T

        def fault(out_NO: Tensor) -> str | None:
            error = relative_error(out_NO, expected_NO)
            return None if error <= TOLERANCE else f"off by {error:.1%}"

        contenders = [
            Contender("ours", lambda weight_OC: skinny_linear(x_NC, weight_OC), fault, ours=True),
            Contender("cuBLAS", lambda weight_OC: F.linear(x_NC, weight_OC), fault),
        ]
        return measure((self.section, self.label, "product"), weights_ROC, contenders, stopwatch, rounds)


def cells() -> list[LinearCell]:
    return [LinearCell(*shape, rows) for shape in SHAPES for rows in (*ROWS, *MANY_ROWS)]
