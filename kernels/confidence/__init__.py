"""Exit confidence: from hidden states to token, confidence and exit flag in one pass over the output matrix.

`interface` is the public function, `reference` the plain form, `blocks` the kernel that reads the matrix,
`join` the one that joins its blocks, `operator` the PyTorch operator, `io_model` the exact bytes.
"""

from lit_eff.kernels.confidence.interface import exit_confidence
from lit_eff.kernels.confidence.reference import (
    MEASURES,
    NEVER,
    ExitConfidence,
    exit_confidence_reference,
)

__all__ = ["MEASURES", "NEVER", "ExitConfidence", "exit_confidence", "exit_confidence_reference"]
