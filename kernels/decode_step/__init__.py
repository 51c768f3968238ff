"""The decode step: layers of a Llama-type transformer on a few rows, in one launch, and the next tokens.

`interface` is the public class, `reference` the plain form, `kernel` the launch's program over `phases` and
`attention`, with `product` inside and `barrier` between; `plan` says how work is cut, `call` makes launches
(over `arguments`).
"""

from lit_eff.kernels.decode_step.arguments import Shape, Weights
from lit_eff.kernels.decode_step.interface import DecodeStep, default_plan
from lit_eff.kernels.decode_step.plan import Plan
from lit_eff.kernels.decode_step.reference import decode_step_reference

__all__ = ["DecodeStep", "Plan", "Shape", "Weights", "decode_step_reference", "default_plan"]
