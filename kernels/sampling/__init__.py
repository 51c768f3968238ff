"""Sampling and speculative verification on the device, NumPy's very bits, without host synchronisation.

`interface` holds the public functions, `reference` the plain forms, `tree` the shape of drafts; `weights`
what every kernel starts from, `select` the borders of truncation, `draw` the draw, `accept` the acceptance,
`penalty` bias and penalties; `plan` how rows are cut, `call` the launches (over `arguments`), `operator` the
PyTorch operators, `io_model` the bytes.
"""

from lit_eff.kernels.sampling.interface import (
    Acceptance,
    Sample,
    accept_chain,
    accept_tree,
    processed_logits,
    sample,
)
from lit_eff.kernels.sampling.reference import count_tokens
from lit_eff.kernels.sampling.tree import Tree

__all__ = [
    "Acceptance",
    "Sample",
    "Tree",
    "accept_chain",
    "accept_tree",
    "count_tokens",
    "processed_logits",
    "sample",
]
