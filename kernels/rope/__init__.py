"""Rotary positions of queries and keys, and the write of keys and values to the cache, in one launch.

`interface` is the public function, `reference` the plain form and the tables of angles, `rotation` and
`slots` the device functions that any kernel may call, `kernel` the launch's program, `operator` the PyTorch
operator (over `call`, `arguments` and `checks`), `io_model` the exact bytes.
"""

from lit_eff.kernels.rope.interface import rope_cache_write
from lit_eff.kernels.rope.reference import RotaryTables, rope_cache_write_reference, rotary_tables

__all__ = ["RotaryTables", "rope_cache_write", "rope_cache_write_reference", "rotary_tables"]
