"""The exact bytes that sampling requests from HBM, program by program: pure arithmetic.

A lane that a mask switches off is not requested. Tensor names are the kernels' arguments without ``p_``.
Atomics on the bins depend on the logits, as does which program is a row's last; here are the rows themselves,
every pass of them, which is nearly all there is, and the two passes that nothing else depends on.

Shapes: N rows, V vocabulary, J draws.
"""

from __future__ import annotations

from dataclasses import dataclass

from lit_eff.kernels.sampling.plan import Plan
from lit_eff.profiling.modelled import STATISTIC_BYTES, Traffic

WIDE_BYTES = 8  # an int64


@dataclass(frozen=True)
class SamplingShape:
    """One call; ``logit_bytes`` are those of an element."""

    rows: int
    vocabulary: int
    logit_bytes: int = 4
    top_k: bool = False
    top_p: bool = False
    min_p: bool = False

    @property
    def row_bytes(self) -> int:
        """All logits, once."""
        return self.rows * self.vocabulary * self.logit_bytes

    @property
    def passes(self) -> int:
        """Over all logits: the largest, coarse bins, fine bins of either border, the draw."""
        return 2 + (self.top_k or self.top_p) + self.top_k + self.top_p


def peak_traffic(shape: SamplingShape, plan: Plan) -> Traffic:
    """The first pass: it reads every logit, and writes each block's largest and five fields of each row."""
    blocks = plan.blocks(shape.vocabulary)
    writes = {"peak": shape.rows * blocks * STATISTIC_BYTES, "state": shape.rows * 5 * WIDE_BYTES}
    return Traffic({"target": shape.row_bytes}, writes)


def draw_traffic(shape: SamplingShape, plan: Plan) -> Traffic:
    """The last pass, of one draw from rows that have something to draw: every program reads its block and its
    row's blocks' largest, and writes two sums; the last of a row reads these and the block it draws from,
    which is taken to be a whole one.
    """
    blocks = plan.blocks(shape.vocabulary)
    programs = shape.rows * blocks
    reads = {
        "target": shape.row_bytes + shape.rows * min(plan.block, shape.vocabulary) * shape.logit_bytes,
        "peak": programs * blocks * STATISTIC_BYTES,
        "temperature": programs * STATISTIC_BYTES,
        "state": programs * 2 * WIDE_BYTES,
        "above": programs * WIDE_BYTES,
        "equal": programs * STATISTIC_BYTES,
        "seed": shape.rows * WIDE_BYTES,
        "position": shape.rows * WIDE_BYTES,
    }
    if shape.min_p:
        reads["min_p"] = programs * STATISTIC_BYTES
    writes = {
        "above": programs * WIDE_BYTES,
        "equal": programs * STATISTIC_BYTES,
        "state": shape.rows * WIDE_BYTES,
        "token": shape.rows * WIDE_BYTES,
        "logprob": shape.rows * STATISTIC_BYTES,
    }
    return Traffic(reads, writes)
