"""The exact bytes that propagation requests from HBM, program by program: pure arithmetic.

A lane that a mask switches off is not requested. Tensor names are the kernels' arguments without ``p_``.
Sectors are those of contiguous tensors.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lit_eff.kernels.linear.io_model import LinearShape, row_tiles, tile_reads
from lit_eff.kernels.linear.plan import ROW_TILE, Plan
from lit_eff.kernels.rope.call import block_heads
from lit_eff.kernels.rope.io_model import Places, entries
from lit_eff.profiling.modelled import Traffic, whole_sectors


@dataclass(frozen=True)
class PropagateShape:
    """One call. ``product`` is that of one layer, ``layer_slots`` are a layer's; ``k_norm_bytes`` those of an
    element of the keys' gain, 0 without.
    """

    layers: int
    product: LinearShape
    places: Places
    kv_heads: int
    head_dim: int
    layer_slots: int
    k_norm_bytes: int = 0

    def index_bytes(self, rows: int, tokens: int) -> Counter[str]:
        """What every program asks for to find its tokens."""
        return Counter(
            {
                "lengths": rows * self.places.length_bytes,
                "query_lengths": rows * self.places.query_length_bytes,
                "positions": tokens * self.places.position_bytes,
            }
        )

    @property
    def key_bytes(self) -> int:
        """Of a token's keys in one layer; of its values as many."""
        return self.kv_heads * self.head_dim * self.product.output_bytes

    @property
    def flops(self) -> int:
        """Of the products of rows that hold tokens."""
        return self.layers * self.product.flops // self.product.rows * len(self.places.tokens)


def propagate_traffic(shape: PropagateShape, plan: Plan) -> list[Traffic]:
    """Requests of the launch, and of the second one where keys have a norm."""
    reads: Counter[str] = Counter()
    layers, places = shape.layers, shape.places
    tiles = 2 * -(-shape.kv_heads * shape.head_dim // plan.block_o)
    tokens_of = Counter(token.place // ROW_TILE for token in places.tokens)
    for i_n, rows in enumerate(row_tiles(shape.product.rows)):
        tokens = tokens_of[i_n]
        for name, size in shape.index_bytes(rows, tokens).items():
            reads[name] += layers * tiles * size
        if tokens == 0:
            continue
        for name, size in tile_reads(shape.product, plan, tokens).items():
            reads[name] += layers * tiles * size
    tokens = len(places.tokens)
    reads["page_table"] = layers * tiles * tokens * places.page_bytes
    turns = not shape.k_norm_bytes
    reads["cos"] = reads["sin"] = turns * layers * tokens * shape.kv_heads * places.row_bytes
    written = layers * tokens * shape.key_bytes
    sectors = places.index_sectors + turns * places.angle_sectors
    if tokens:
        rows_read = (token.place for token in places.tokens)
        sectors += entries(rows_read, shape.product.channels * shape.product.input_bytes)
        sectors += whole_sectors(*(layers * size for size in shape.product.weight_tensors))
    launch = Traffic(reads, {"k_cache": written, "v_cache": written}, sectors=sectors)
    return [launch] if turns else [launch, _keys_traffic(shape)]


def _keys_traffic(shape: PropagateShape) -> Traffic:
    places, layers, tokens = shape.places, shape.layers, len(shape.places.tokens)
    tiles = -(-shape.kv_heads // block_heads(shape.kv_heads, shape.head_dim))
    once = shape.index_bytes(places.count, tokens)
    once["page_table"] = tokens * places.page_bytes
    once["gain"] = places.count * shape.head_dim * shape.k_norm_bytes
    once["cos"] = once["sin"] = tokens * places.row_bytes
    written = layers * tokens * shape.key_bytes
    reads = {name: size * tiles * layers for name, size in once.items()} | {"k_cache": written}
    slots = (layer * shape.layer_slots + token.slot for layer in range(layers) for token in places.tokens)
    sectors = places.index_sectors + places.angle_sectors + entries(slots, shape.key_bytes)
    gains = whole_sectors(layers * shape.head_dim * shape.k_norm_bytes)
    return Traffic(reads, {"k_cache": written}, sectors=sectors + gains)
