"""The exact bytes that the row kernel requests from HBM, and what the matrix products must move: arithmetic.

A lane that a mask switches off is not requested. Tensor names are the kernel's pointer arguments without
``p_``; a bias counts the student's and the teacher's.

Shapes: N tokens, C model dim, V vocabulary, E exits.
"""

from __future__ import annotations

from dataclasses import dataclass

from lit_eff.kernels.cross_entropy.sizes import padded
from lit_eff.profiling.modelled import STATISTIC_BYTES, Traffic

TARGET = 8  # bytes of an int64


@dataclass(frozen=True)
class RowShape:
    """Rows of one exit in one chunk. ``counted``: rows whose token counts; ``bias_bytes`` of an element or 0.

    ``taught``: by a teacher. ``last``: the last exit. All columns are this process's.
    """

    rows: int
    counted: int
    columns: int
    element_bytes: int = 2
    gradient: bool = True
    taught: bool = False
    last: bool = True
    bias_bytes: int = 0
    teacher_bias_bytes: int = 0

    @property
    def row_bytes(self) -> int:
        """One reading of a row, up to its stride."""
        return padded(self.columns) * self.element_bytes


def row_traffic(shape: RowShape) -> Traffic:
    """Of one launch that makes statistics and finishes: what a process that holds all columns does.

    Every row that counts is read for its statistics and once more for its gradient; in between, the vector of
    columns around the maximum, and the target's logit.
    """
    readings = 1 + shape.gradient
    vector = 16 // shape.element_bytes
    reads = {"means": shape.rows * STATISTIC_BYTES, "targets": shape.counted * TARGET}
    writes = {"sums": shape.rows * 5 * STATISTIC_BYTES}
    reads["logits"] = shape.counted * (readings * shape.row_bytes + 16 + shape.element_bytes)
    bias = shape.bias_bytes * (readings * shape.columns + vector + 1)
    if shape.taught:
        at_target = shape.element_bytes if shape.gradient else 0
        reads["teacher"] = shape.counted * (readings * shape.row_bytes + at_target)
        reads["lse"] = shape.counted * STATISTIC_BYTES
        bias += shape.teacher_bias_bytes * (readings * shape.columns + shape.gradient)
    if bias:
        reads["bias"] = shape.counted * bias
    if shape.last:
        writes["lse"] = writes["best"] = shape.counted * STATISTIC_BYTES
    else:
        reads["best"] = shape.counted * STATISTIC_BYTES
    if shape.gradient:
        writes["gradient"] = shape.rows * shape.row_bytes + shape.counted * shape.element_bytes
    return Traffic(reads, {name: size for name, size in writes.items() if size})


def product_bytes(rows: int, width: int, columns: int, element_bytes: int = 2, *, first: bool) -> int:
    """The least that the three products of a chunk move: factors read once, results written once.

    The matrix's gradient is float32, and read as well but for the ``first`` chunk.
    """
    logits, matrix, hidden = rows * columns, columns * width, rows * width
    moved = 3 * logits + 2 * matrix + 3 * hidden
    return moved * element_bytes + matrix * STATISTIC_BYTES * (1 if first else 2)
