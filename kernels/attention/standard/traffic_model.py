"""The exact bytes that the three standard kernels request from HBM; Algorithm 0's formula bounds them below.

Pure arithmetic. The formula (`io_model.standard_forward`: 4 N^2 + 4 N d elements a head) moves every matrix
once. These kernels do so for Q, S, P and O, and read K and V once a query tile, which caches may serve; rows
longer than the softmax tile are read twice. So the distinct sectors equal the formula where rows fill whole
sectors, and the requests exceed it by the terms here. Masks change nothing: every score is moved.
"""

from __future__ import annotations

from math import ceil

from lit_eff.kernels.attention.io_model import AttentionShape
from lit_eff.kernels.attention.standard.tiles import product_tiles, softmax_tiles
from lit_eff.profiling.modelled import Traffic, whole_sectors


def standard_traffic(shape: AttentionShape) -> dict[str, Traffic]:
    """Requests by kernel, in launch order; tensors are named as the kernels' pointers without ``p_``."""
    rows = shape.batch * shape.heads * shape.queries
    scores = rows * shape.keys * shape.element_bytes
    like_q = rows * shape.head_dim * shape.element_bytes
    tiles = product_tiles(shape.head_dim, shape.element_bytes)
    head_row = shape.head_dim * shape.element_bytes
    walks = shape.batch * shape.heads * ceil(shape.queries / tiles.block_m)
    walked = walks * shape.keys * head_row
    passes = 1 if shape.keys <= softmax_tiles(shape.keys)[1] else 2
    matrix, one_q, one_k = (
        whole_sectors(size) for size in (scores, like_q, shape.batch * shape.kv_heads * shape.keys * head_row)
    )
    return {
        "standard_scores_kernel": Traffic(
            {"q": like_q, "k": walked}, {"scores": scores}, sectors=one_q + one_k
        ),
        "standard_softmax_kernel": Traffic({"scores": passes * scores}, {"weights": scores}, sectors=matrix),
        "standard_output_kernel": Traffic(
            {"weights": scores, "v": walked}, {"out": like_q}, sectors=matrix + one_k
        ),
    }


def standard_flops(shape: AttentionShape) -> dict[str, int]:
    """By kernel: 2 D a pair in either product, hidden pairs too, and five a score in the softmax.

    The five are maximum, difference, exponential, sum and division.
    """
    pairs = shape.batch * shape.heads * shape.queries * shape.keys
    product = 2 * shape.head_dim * pairs
    return {
        "standard_scores_kernel": product,
        "standard_softmax_kernel": 5 * pairs,
        "standard_output_kernel": product,
    }
