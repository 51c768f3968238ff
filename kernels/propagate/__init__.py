"""The keys and values of the layers that an early exit skips, from the hidden state that it left with.

`interface` is the public function, `reference` the plain form, `kernel` the launch's program, `keys` that of
a norm over key heads, `call` makes launches of tensors, `operator` is the PyTorch operator, `io_model` the
exact bytes.
"""

from lit_eff.kernels.propagate.interface import propagate
from lit_eff.kernels.propagate.reference import propagate_reference

__all__ = ["propagate", "propagate_reference"]
