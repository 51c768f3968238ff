"""The exact bytes that rotation and cache write request from HBM, program by program: pure arithmetic.

A lane that a mask switches off is not requested. Tensor names are the kernel's arguments without ``p_``.
Every token is taken to have a page of the cache.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lit_eff.kernels.rope.call import block_heads
from lit_eff.profiling.modelled import STATISTIC_BYTES, Traffic


@dataclass(frozen=True)
class RopeShape:
    """One call; ``tokens`` of its ``batch * queries`` are some. Bytes are those of an element, 0 where there
    is no such tensor.
    """

    batch: int
    queries: int
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    element_bytes: int = 2
    length_bytes: int = 8
    query_length_bytes: int = 0
    position_bytes: int = 0
    page_bytes: int = 0
    gain_bytes: int = 0


def rope_traffic(shape: RopeShape) -> Traffic:
    """Requests of the launch. Positions are read of those that ``query_lengths`` lets be tokens alone."""
    block = block_heads(shape.heads, shape.head_dim)
    q_tiles, kv_tiles = (-(-heads // block) for heads in (shape.heads, shape.kv_heads))
    programs, places = q_tiles + 2 * kv_tiles, shape.batch * shape.queries
    row = shape.head_dim * shape.element_bytes
    reads = Counter(
        {
            "lengths": places * programs * shape.length_bytes,
            "query_lengths": places * programs * shape.query_length_bytes,
            "positions": shape.tokens * programs * shape.position_bytes,
            "page_table": shape.tokens * 2 * kv_tiles * shape.page_bytes,
            "q_gain": places * q_tiles * shape.head_dim * shape.gain_bytes,
            "k_gain": places * kv_tiles * shape.head_dim * shape.gain_bytes,
            "q": shape.tokens * shape.heads * row,
            "k": shape.tokens * shape.kv_heads * row,
            "v": shape.tokens * shape.kv_heads * row,
        }
    )
    for table in ("cos", "sin"):
        reads[table] += shape.tokens * (q_tiles + kv_tiles) * shape.rotary_dim // 2 * STATISTIC_BYTES
    writes = Counter(
        {
            "out": places * shape.heads * row,
            "k_cache": shape.tokens * shape.kv_heads * row,
            "v_cache": shape.tokens * shape.kv_heads * row,
        }
    )
    return Traffic(*({name: n for name, n in count.items() if n} for count in (reads, writes)))
