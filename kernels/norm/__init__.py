"""RMSNorm and LayerNorm of rows, with the residual that is added first, for training and decoding.

`interface` holds the public functions, `reference` the plain form, `forward` and `backward` the kernels,
`call` the tile and what a launch needs of the tensors, `operator` the PyTorch operators, `io_model` the exact
bytes.
"""

from lit_eff.kernels.norm.interface import layer_norm, rms_norm
from lit_eff.kernels.norm.reference import norm_reference

__all__ = ["layer_norm", "norm_reference", "rms_norm"]
