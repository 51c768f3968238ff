"""Cross-entropy of many exits through one output matrix, without ever holding the logits.

`interface` is the public function, `checks` what it refuses, `reference` the plain form, `operator` the
PyTorch operators, `call` one checked call and a chunk's memory, `sizes` how large chunks and tiles are,
`chunked` the loop over chunks and exits, `products` its matrix products, `rows` the Triton kernel between
them, `scale` the backward pass, `shards` tokens or vocabulary over several processes, `io_model` exact bytes.
"""

from lit_eff.kernels.cross_entropy.interface import multi_exit_cross_entropy, obstacle
from lit_eff.kernels.cross_entropy.reference import ExitLosses, multi_exit_cross_entropy_reference

__all__ = ["ExitLosses", "multi_exit_cross_entropy", "multi_exit_cross_entropy_reference", "obstacle"]
