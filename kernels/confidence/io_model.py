"""The exact bytes that exit confidence requests from HBM, program by program: pure arithmetic.

A lane that a mask switches off is not requested. Tensor names are the kernels' arguments without ``p_``.

Shapes: N rows, C model dim, V vocabulary.
"""

from __future__ import annotations

from collections import Counter

from lit_eff.kernels.linear.io_model import LinearShape, row_tiles, tile_reads
from lit_eff.kernels.linear.plan import Plan
from lit_eff.profiling.modelled import STATISTIC_BYTES, Traffic

PARTIALS = ("max", "best", "second", "sum", "moment")  # 4 bytes each, a row and block
OUTPUT_BYTES = {"token": 8, "probability": 4, "gap": 4, "entropy": 4, "lse": 4, "exit": 1}


def confidence_traffic(shape: LinearShape, plan: Plan) -> list[Traffic]:
    """Requests of the launch over the output matrix's blocks, and of their join."""
    blocks = -(-shape.weight_rows // plan.block_o)
    reads: Counter[str] = Counter()
    for tile_rows in row_tiles(shape.rows):
        for _ in range(blocks):
            reads += tile_reads(shape, plan, tile_rows)
    partials = dict.fromkeys(PARTIALS, shape.rows * blocks * STATISTIC_BYTES)
    join = {**partials, "threshold": shape.rows * STATISTIC_BYTES}
    outputs = {name: shape.rows * size for name, size in OUTPUT_BYTES.items()}
    return [Traffic(dict(+reads), partials), Traffic(join, outputs)]
