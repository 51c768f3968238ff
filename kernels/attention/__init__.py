"""Attention: a plain PyTorch reference, Triton forward and backward kernels, and the model of their HBM
traffic.

`interface` is the public function, `reference` the plain form, `forward` and `backward` the kernels over the
pieces in `blocks`, `operator` their PyTorch operators, `tiles` the block sizes, `io_model` the papers'
formulas, `traffic_model` the exact bytes of these kernels, `traffic` the count beside the formula.
"""

from lit_eff.kernels.attention.interface import Support, attention, attention_varlen, explain, supports
from lit_eff.kernels.attention.paths import Path, use_path
from lit_eff.kernels.attention.reference import (
    attention_reference,
    attention_varlen_reference,
    visible_keys,
)

__all__ = [
    "Path",
    "Support",
    "attention",
    "attention_reference",
    "attention_varlen",
    "attention_varlen_reference",
    "explain",
    "supports",
    "use_path",
    "visible_keys",
]
