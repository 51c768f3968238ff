"""Attention: a plain PyTorch reference, Triton forward and backward kernels, and the model of their HBM
traffic.

Start at `interface`, the public functions, and `reference`, the definition (with `dropout`). `paths` says
which implementation a call takes: the portable kernels (`forward`, `backward` with `key_gradient` and
`query_gradient`, over the pieces in `blocks` and the grouped arguments in `arguments`; `documents` finds
what packed rows may skip), those of `hopper`, or `cpu`. `operator` makes them PyTorch operators.
`with_cache` decodes and verifies, `standard` is the baseline. `tiles` are the block sizes, `io_model` the
papers' formulas and `scaling` how they grow, `traffic_model` the exact bytes of these kernels and `sectors`
the least of them, `specimens` the launches that are counted against both, `traffic` a count to show.
"""

from lit_eff.kernels.attention.interface import Support, attention, attention_varlen, explain, supports
from lit_eff.kernels.attention.paths import Path, use_path
from lit_eff.kernels.attention.reference import (
    attention_reference,
    attention_varlen_reference,
    visible_keys,
)
from lit_eff.kernels.attention.with_cache import attention_with_cache, attention_with_cache_reference

__all__ = [
    "Path",
    "Support",
    "attention",
    "attention_reference",
    "attention_varlen",
    "attention_varlen_reference",
    "attention_with_cache",
    "attention_with_cache_reference",
    "explain",
    "supports",
    "use_path",
    "visible_keys",
]
