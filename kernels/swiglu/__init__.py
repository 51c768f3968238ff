"""SwiGLU between the products of an MLP, forward and backward, each in one pass over HBM.

`interface` is the public function, `reference` the plain form, `kernel` the kernels, `operator` the PyTorch
operators, `io_model` the exact bytes.
"""

from lit_eff.kernels.swiglu.interface import swiglu
from lit_eff.kernels.swiglu.reference import swiglu_reference

__all__ = ["swiglu", "swiglu_reference"]
