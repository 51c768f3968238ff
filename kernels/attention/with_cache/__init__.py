"""Attention on a key/value cache: decoding, verification of drafts (chains and trees), prefill in pieces.

`interface` is the public function, `reference` the plain form, `split` the portable kernel that walks the
cache in chunks, `hopper` the one for Hopper, to the same bits (with `hopper_load` and `hopper_items`),
`paths` which of them a call takes, `combine` how chunks are joined, `operator` the PyTorch operator, `tiles`
the constants that the bits depend on and how work is dealt. `io_model` and `hopper_io_model` are the exact
bytes of the kernels, `sectors` the least of them, `specimens` the launches that are held against both.
"""

from lit_eff.kernels.attention.with_cache.interface import attention_with_cache
from lit_eff.kernels.attention.with_cache.reference import attention_with_cache_reference, visible_slots

__all__ = ["attention_with_cache", "attention_with_cache_reference", "visible_slots"]
