"""The launches of exit confidence with their modelled bytes. Shapes: N rows, V vocabulary."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from random import Random

import torch

from lit_eff.kernels.catalogue import Operation
from lit_eff.kernels.confidence.io_model import confidence_traffic
from lit_eff.kernels.confidence.operator import empty_outputs
from lit_eff.kernels.confidence.operator import launches as confidence_launches
from lit_eff.kernels.confidence.reference import MEASURES
from lit_eff.kernels.linear.specimens import ProductCase, draw_product
from lit_eff.profiling.modelled import ModelledLaunch

SOFTCAP = 30.0


@dataclass(frozen=True)
class ConfidenceCase(ProductCase):
    """``outputs`` is the vocabulary; ``capped``: logits go through a softcap."""

    capped: bool = False
    measure: str = "softmax_response"


def draw(random: Random) -> ConfidenceCase:
    product = asdict(draw_product(random))
    return ConfidenceCase(**product, capped=random.random() < 0.5, measure=random.choice(MEASURES))


def launches(case: ConfidenceCase, device: torch.device, capability: int) -> list[ModelledLaunch]:
    """The output matrix's blocks, then their join."""
    product = case.product(device, capability)
    found = confidence_launches(
        product,
        case.bias_of(device, case.outputs),
        SOFTCAP if case.capped else None,
        torch.rand(case.rows, device=device),
        case.measure,
        empty_outputs(product.x_NC),
    )
    modelled = zip(found, confidence_traffic(case.shape, product.plan), (case.shape.flops, 0), strict=True)
    return [ModelledLaunch(*each) for each in modelled]


OPERATIONS = (
    Operation(
        name="confidence",
        case=ConfidenceCase,
        small=(
            ConfidenceCase(1, 1, 1),
            ConfidenceCase(5, 100, 70),
            ConfidenceCase(5, 100, 70, bias=True, measure="max_probability", dtype="float32"),
            ConfidenceCase(17, 50, 150, norm="rms"),
            ConfidenceCase(5, 50, 150, norm="rms_plain", capped=True, dtype="float32"),
            ConfidenceCase(3, 50, 150, norm="layer", bias=True, measure="entropy"),
            ConfidenceCase(5, 256, 100, groups=1),
            ConfidenceCase(5, 256, 100, groups=2, norm="rms", dtype="float32"),
            ConfidenceCase(35, 20, 33, capped=True),
            ConfidenceCase(16, 64, 64),
            ConfidenceCase(2, 40, 3100, measure="entropy"),  # one lane
            ConfidenceCase(20, 256, 90, bias=True, norm="layer", groups=4, capped=True),
        ),
        typical=ConfidenceCase(64, 4096, 128256, norm="rms", dtype="bfloat16"),
        draw=draw,
        launches=launches,
    ),
)
