"""The exact bytes that exit confidence requests from HBM, program by program: pure arithmetic.

A lane that a mask switches off is not requested. Tensor names are the kernels' arguments without ``p_``.
Sectors are those of contiguous tensors, and of partials in one tensor but for ``best``.

Shapes: N rows, C model dim, V vocabulary.
"""

from __future__ import annotations

from collections import Counter

from lit_eff.kernels.linear.io_model import LinearShape, row_tiles, tile_reads
from lit_eff.kernels.linear.plan import Plan
from lit_eff.profiling.modelled import STATISTIC_BYTES, Traffic, sector_bytes, whole_sectors

PARTIALS = ("max", "best", "second", "sum", "moment")  # 4 bytes each, a row and block
OUTPUT_BYTES = {"token": 8, "probability": 4, "gap": 4, "entropy": 4, "lse": 4, "exit": 1}


def confidence_traffic(shape: LinearShape, plan: Plan) -> list[Traffic]:
    """Requests of the launch over the output matrix's blocks, and of their join."""
    blocks = -(-shape.weight_rows // plan.block_o)
    reads: Counter[str] = Counter()
    for tile_rows in row_tiles(shape.rows):
        for _ in range(blocks):
            reads += tile_reads(shape, plan, tile_rows)
    size = shape.rows * blocks * STATISTIC_BYTES
    partials = dict.fromkeys(PARTIALS, size)
    threshold = shape.rows * STATISTIC_BYTES
    beside = (sector_bytes([(i * size, (i + 1) * size)]) for i in range(len(PARTIALS) - 1))
    sectors = sum(beside) + whole_sectors(size, threshold)
    join = {**partials, "threshold": threshold}
    outputs = {name: shape.rows * size for name, size in OUTPUT_BYTES.items()}
    return [Traffic(reads, partials, sectors=shape.product_sectors), Traffic(join, outputs, sectors=sectors)]
