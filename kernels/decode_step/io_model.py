"""The bytes that a decode step moves: pure arithmetic, from the sizes alone.

Shapes: L layers, C model dim, H query heads, K kv heads, D head dim, M MLP inner width, V vocabulary, N rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from lit_eff.kernels.decode_step.arguments import Shape
from lit_eff.kernels.decode_step.plan import ROW_TILE
from lit_eff.profiling.modelled import Traffic

HISTORY_BYTES = 8  # an int64 token


def layer_weights(shape: Shape) -> dict[str, int]:
    """Elements of one layer's weights, by the names of `Weights`."""
    return {
        "qkv": shape.qkv * shape.channels,
        "output": shape.channels * shape.attended,
        "gate_up": 2 * shape.inner * shape.channels,
        "down": shape.channels * shape.inner,
    }


def weight_bytes(shape: Shape, element: int) -> int:
    """All matrices and the output matrix, once: what rates of decode steps are quoted on."""
    matrices = shape.layers * sum(layer_weights(shape).values())
    return element * (matrices + shape.vocabulary * shape.channels)


def layers_traffic(shape: Shape, positions: Sequence[int], element: int, cache_element: int) -> Traffic:
    """What the layers request of weights, embedding and cache, and write to cache and history.

    Every tile of ROW_TILE rows reads the weights, past the first from the L2 cache. A row reads the slots up
    to its own, of every kv head once, and of the embedding twice: by those that start the residual stream and
    by the one that sums its squares. What phases hand on to each other stays in L2 and is not counted.
    """
    rows = len(positions)
    tiles = -(-rows // ROW_TILE)
    reads = {name: shape.layers * tiles * size * element for name, size in layer_weights(shape).items()}
    reads["embedding"] = 2 * rows * shape.channels * element
    slot = shape.layers * shape.kv_heads * shape.head_dim * cache_element
    reads["k"] = reads["v"] = slot * sum(position + 1 for position in positions)
    writes = {"k": slot * rows, "v": slot * rows, "history": HISTORY_BYTES * rows}
    return Traffic(reads, writes)
