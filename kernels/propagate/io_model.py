"""The exact bytes that propagation requests from HBM, program by program: pure arithmetic.

A lane that a mask switches off is not requested. Tensor names are the kernels' arguments without ``p_``.
Every token is taken to have a slot and a page of the caches.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lit_eff.kernels.linear.io_model import LinearShape, row_tiles, tile_reads
from lit_eff.kernels.linear.plan import ROW_TILE, Plan
from lit_eff.kernels.rope.call import block_heads
from lit_eff.profiling.modelled import STATISTIC_BYTES, Traffic


@dataclass(frozen=True)
class PropagateShape:
    """One call. ``product`` is that of one layer; ``tokens`` says which of the rows are some. Bytes are those
    of an element, 0 where there is no such tensor.
    """

    layers: int
    product: LinearShape
    kv_heads: int
    head_dim: int
    rotary_dim: int
    tokens: tuple[bool, ...]
    length_bytes: int = 8
    query_length_bytes: int = 0
    position_bytes: int = 0
    page_bytes: int = 0
    k_norm_bytes: int = 0

    def index_bytes(self, rows: int, tokens: int) -> Counter[str]:
        """What every program asks for to find its tokens."""
        return Counter(
            {
                "lengths": rows * self.length_bytes,
                "query_lengths": rows * self.query_length_bytes,
                "positions": tokens * self.position_bytes,
            }
        )

    @property
    def turned_bytes(self) -> int:
        """Of one table, for all the heads of a token."""
        return self.kv_heads * self.rotary_dim // 2 * STATISTIC_BYTES

    @property
    def key_bytes(self) -> int:
        """Of a token's keys in one layer; of its values as many."""
        return self.kv_heads * self.head_dim * self.product.output_bytes


def propagate_traffic(shape: PropagateShape, plan: Plan) -> list[Traffic]:
    """Requests of the launch, and of the second one where keys have a norm."""
    reads: Counter[str] = Counter()
    writes: Counter[str] = Counter()
    tiles = 2 * -(-shape.kv_heads * shape.head_dim // plan.block_o)
    for i_n, rows in enumerate(row_tiles(shape.product.rows)):
        tokens = sum(shape.tokens[i_n * ROW_TILE : (i_n + 1) * ROW_TILE])
        for name, size in shape.index_bytes(rows, tokens).items():
            reads[name] += shape.layers * tiles * size
        if tokens == 0:
            continue
        for name, size in tile_reads(shape.product, plan, tokens).items():
            reads[name] += shape.layers * tiles * size
        reads["page_table"] += shape.layers * tiles * tokens * shape.page_bytes
        for name in ("cos", "sin"):
            reads[name] += 0 if shape.k_norm_bytes else shape.layers * tokens * shape.turned_bytes
        for name in ("k_cache", "v_cache"):
            writes[name] += shape.layers * tokens * shape.key_bytes
    launches = [_traffic(reads, writes)]
    return [*launches, _keys_traffic(shape)] if shape.k_norm_bytes else launches


def _keys_traffic(shape: PropagateShape) -> Traffic:
    rows, tokens = shape.product.rows, sum(shape.tokens)
    tiles = -(-shape.kv_heads // block_heads(shape.kv_heads, shape.head_dim))
    once = shape.index_bytes(rows, tokens)
    once["page_table"] += tokens * shape.page_bytes
    once["gain"] += rows * shape.head_dim * shape.k_norm_bytes
    reads = Counter({name: size * tiles * shape.layers for name, size in once.items()})
    turned = shape.rotary_dim // 2 * STATISTIC_BYTES * tiles
    for name in ("cos", "sin"):
        reads[name] += shape.layers * tokens * turned
    reads["k_cache"] += shape.layers * tokens * shape.key_bytes
    return _traffic(reads, Counter({"k_cache": shape.layers * tokens * shape.key_bytes}))


def _traffic(reads: Counter[str], writes: Counter[str]) -> Traffic:
    return Traffic(*({name: n for name, n in count.items() if n} for count in (reads, writes)))
