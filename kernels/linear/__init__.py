"""Linear layers for decoding: a few rows by a big weight, row by row the same bits whatever is beside them.

`interface` is the public function, `reference` the plain form, `tile` the product of one tile with `norm` and
`epilogue` around it, `kernel` the launch's program, `plan` how work is cut, `operator` the PyTorch operator
(over `call` and `arguments`), `io_model` the exact bytes.
"""

from lit_eff.kernels.linear.interface import skinny_linear
from lit_eff.kernels.linear.reference import ACTIVATIONS, Norm, skinny_linear_reference

__all__ = ["ACTIVATIONS", "Norm", "skinny_linear", "skinny_linear_reference"]
