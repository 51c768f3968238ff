"""The exact bytes that the loss's kernels request from HBM, and what the products must move: arithmetic.

A lane that a mask switches off is not requested. Tensor names are the kernels' pointer arguments without
``p_``; a bias counts the student's and the teacher's.

Shapes: N tokens, C model dim, V vocabulary, E exits.
"""

from __future__ import annotations

from dataclasses import dataclass

from lit_eff.kernels.cross_entropy.sizes import padded, scale_programs
from lit_eff.profiling.modelled import STATISTIC_BYTES, Traffic, whole_sectors

TARGET = 8  # bytes of an int64
VECTOR_BYTES = 16
SUMS, STATES = 5, 7  # numbers a row
# An element's: maximum, multiply-add, exponential, addition; multiply-add, exponential, product, difference.
STATISTICS_FLOPS, GRADIENT_FLOPS = 5, 5


@dataclass(frozen=True)
class RowShape:
    """Rows of one exit in one launch. Bytes are those of an element, 0 where there is no such tensor.

    Args:
        counted: rows whose token counts.
        columns: of the vocabulary that this process holds.
        width: rows of the output matrix, of which those past ``columns`` round its size up; 0: as many.
        taught: by a teacher. last: the last exit.
        statistics, finish: what the launch does; with shards of the vocabulary there is one for each.
        here: rows that count whose target is among ``columns``; None: all.
        peaks: columns of the vectors of 16 bytes that hold the rows' maxima; None: whole vectors.
    """

    rows: int
    counted: int
    columns: int
    width: int = 0
    element_bytes: int = 2
    gradient: bool = True
    taught: bool = False
    last: bool = True
    bias_bytes: int = 0
    teacher_bias_bytes: int = 0
    statistics: bool = True
    finish: bool = True
    here: int | None = None
    peaks: int | None = None

    @property
    def row_bytes(self) -> int:
        """One reading of a row, up to its stride."""
        return padded(self.width or self.columns) * self.element_bytes

    @property
    def writes_gradient(self) -> bool:
        return self.finish and self.gradient

    @property
    def readings(self) -> int:
        """Of a row: for its statistics, and for its gradient."""
        return self.statistics + self.writes_gradient

    @property
    def targets_here(self) -> int:
        return self.counted if self.here is None else self.here

    @property
    def flops(self) -> int:
        each = STATISTICS_FLOPS * self.statistics + GRADIENT_FLOPS * self.writes_gradient
        return self.counted * self.columns * each * (1 + self.taught)


def row_traffic(shape: RowShape) -> Traffic:
    """Of one launch. Every row that counts is read for its statistics and once more for its gradient; for the
    statistics also the vector of columns around the maximum, and the target's logit.
    """
    counted, here, state = shape.counted, shape.targets_here, STATES * STATISTIC_BYTES
    vector = VECTOR_BYTES // shape.element_bytes
    peaks = counted * vector if shape.peaks is None else shape.peaks
    own, taught = shape.statistics, shape.taught
    at_target = taught and shape.writes_gradient
    columns = counted * shape.readings * shape.columns
    reads = {
        "means": shape.rows * STATISTIC_BYTES,
        "targets": counted * TARGET,
        "logits": counted * (shape.readings * shape.row_bytes + own * VECTOR_BYTES)
        + own * here * shape.element_bytes,
        "bias": shape.bias_bytes * (columns + own * (peaks + here))
        + taught * shape.teacher_bias_bytes * (columns + at_target * here),
        "teacher": taught * counted * shape.readings * shape.row_bytes
        + at_target * here * shape.element_bytes,
        "lse": taught * counted * STATISTIC_BYTES,
        "best": (shape.finish and not shape.last) * counted * STATISTIC_BYTES,
        "state": 0 if own else counted * state,
    }
    found = shape.finish and shape.last
    writes = {
        "sums": shape.finish * shape.rows * SUMS * STATISTIC_BYTES,
        "state": 0 if shape.finish else shape.rows * state,
        "lse": found * counted * STATISTIC_BYTES,
        "best": found * counted * STATISTIC_BYTES,
        "gradient": shape.writes_gradient * (shape.rows * shape.row_bytes + here * shape.element_bytes),
    }
    return Traffic(reads, writes, sectors=_row_sectors(shape, reads) if counted == shape.rows else None)


def _row_sectors(shape: RowShape, reads: dict[str, int]) -> int:
    """Where every row counts; student and teacher share a bias."""
    once = [reads[name] for name in ("means", "targets", "lse", "best", "state")]
    bias = max(shape.bias_bytes, shape.taught * shape.teacher_bias_bytes) if shape.readings else 0
    rows = shape.rows * shape.row_bytes * (1 + shape.taught) if shape.readings else 0
    return whole_sectors(*once, shape.columns * bias, rows)


def scale_traffic(elements: int, element_bytes: int, factor_bytes: int, *, is_one: bool) -> Traffic:
    """Every program asks for the factor; of a factor of one, that is all."""
    size = 0 if is_one else elements * element_bytes
    reads = {"x": size, "factor": scale_programs(elements) * factor_bytes}
    return Traffic(reads, {"x": size}, sectors=whole_sectors(size, factor_bytes))


def product_bytes(rows: int, width: int, columns: int, element_bytes: int = 2, *, first: bool) -> int:
    """The least that the three products of a chunk move: factors read once, results written once.

    The matrix's gradient is float32, and read as well but for the ``first`` chunk.
    """
    logits, matrix, hidden = rows * columns, columns * width, rows * width
    moved = 3 * logits + 2 * matrix + 3 * hidden
    return moved * element_bytes + matrix * STATISTIC_BYTES * (1 if first else 2)
