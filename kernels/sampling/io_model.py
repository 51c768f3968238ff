"""The exact bytes that the passes of sampling request from HBM, program by program: arithmetic.

What a pass asks for depends on the logits: which rows truncate, and how many of their tokens fall where. The
model takes those numbers, a `Row` a row; `facts` finds them in the logits. A lane that a mask switches off is
not requested. Tensor names are the kernels' arguments without ``p_``. Logits and parameters are contiguous.

Shapes: N rows, B sequences, V vocabulary, J draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lit_eff.kernels.requests import Requests, span
from lit_eff.kernels.sampling.plan import BINS, Plan
from lit_eff.profiling.modelled import STATISTIC_BYTES, Traffic

WIDE_BYTES = 8  # an int64
GROUP_BINS = BINS // 64  # that a bin is looked up among, in the end
# Fields of a row's state, as of `weights`.
FIELDS = ("border", "equals", "total", "count_bin", "count_rest", "count_above", "mass_bin", "mass_rest")
BEFORE = ("border", "equals", "total", "count_bin", "mass_bin")  # written by the first pass


class Row(NamedTuple):
    """A row of logits: where it is, and what its truncation comes to.

    Args:
        draft: whether it is one of the draft's, at ``place`` there.
        sequence: whose parameters it takes.
        alive: tokens near enough to weigh something, where coarse bins are filled; 0 where they are not.
        count_bin, count_fine: coarse and fine bin of top-k's border, -1 where it has none.
        counted: tokens in that coarse bin.
        masses: whether top-p has a border; ``massed`` are the tokens in its coarse bin.
        drawn: tokens drawn from the row.
    """

    draft: bool
    place: int
    sequence: int
    alive: int = 0
    count_bin: int = -1
    count_fine: int = -1
    counted: int = 0
    masses: bool = False
    massed: int = 0
    drawn: tuple[int, ...] = ()

    @property
    def truncates(self) -> bool:
        return self.alive > 0


@dataclass(frozen=True)
class SamplingModel:
    """One call's passes; ``logit_bytes`` are those of an element."""

    vocabulary: int
    plan: Plan
    rows: Sequence[Row]
    logit_bytes: int = 4
    top_k: bool = False
    top_p: bool = False
    min_p: bool = False

    @property
    def blocks(self) -> int:
        return self.plan.blocks(self.vocabulary)

    @property
    def row_bytes(self) -> int:
        """All logits of all rows, once."""
        return len(self.rows) * self.vocabulary * self.logit_bytes

    @property
    def passes(self) -> int:
        """Over all logits: the largest, coarse bins, fine bins of either border, the draw."""
        return 2 + (self.top_k or self.top_p) + self.top_k + self.top_p

    def block_size(self, i_v: int) -> int:
        return min(self.plan.block, self.vocabulary - i_v * self.plan.block)

    def read_block(self, to: Requests, row: Row, i_v: int) -> None:
        first = row.place * self.vocabulary + i_v * self.plan.block
        name = "draft" if row.draft else "target"
        to.read(name, span(first, self.block_size(i_v), self.logit_bytes))

    def read_state(self, to: Requests, n: int, *fields: str, times: int = 1) -> None:
        for each in fields:
            to.read("state", span(n * len(FIELDS) + FIELDS.index(each), 1, WIDE_BYTES), times)

    def read_scale(self, to: Requests, n: int, row: Row, times: int) -> None:
        """The row's blocks' largest, and its temperature."""
        to.read("peak", span(n * self.blocks, self.blocks, STATISTIC_BYTES), times)
        to.read("temperature", span(row.sequence, 1, STATISTIC_BYTES), times)

    def _all_blocks(self, to: Requests, row: Row) -> None:
        for i_v in range(self.blocks):
            self.read_block(to, row, i_v)

    def _parameter(self, to: Requests, name: str, row: Row, times: int = 1) -> None:
        if getattr(self, name):
            to.read(name, span(row.sequence, 1, STATISTIC_BYTES), times)

    def _bins(self, to: Requests, name: str, n: int, bins: int, size: int, looked_up: bool = False) -> None:
        """The first ``bins`` of a row; looking one up also reads a group, which is among them."""
        to.read(name, span(n * BINS, bins, size))
        to.reads[name] += looked_up * GROUP_BINS * size

    def _aim(self, to: Requests, n: int, row: Row) -> None:
        """As `select.aim_at_mass`."""
        self._parameter(to, "top_p", row)
        if row.masses:
            self._bins(to, "masses", n, BINS, WIDE_BYTES, looked_up=True)
            to.writes["state"] += 2 * WIDE_BYTES

    def _arrivals(self, to: Requests) -> None:
        """Every program counts itself."""
        to.atomics["done"] += self.blocks * STATISTIC_BYTES

    def peak(self) -> Traffic:
        """Every logit; each block's largest, and five fields of each row."""
        to = Requests()
        for row in self.rows:
            self._all_blocks(to, row)
        to.writes["peak"] = len(self.rows) * self.blocks * STATISTIC_BYTES
        to.writes["state"] = len(self.rows) * len(BEFORE) * WIDE_BYTES
        return to.traffic()

    def coarse(self) -> Traffic:
        """Counts and weights of a row's tokens to its bins; its last program reads all of them."""
        to = Requests()
        for n, row in enumerate(self.rows):
            self.read_scale(to, n, row, self.blocks)
            for name in ("top_k", "top_p"):
                self._parameter(to, name, row, self.blocks)
            if not row.truncates:
                continue
            self._all_blocks(to, row)
            self._arrivals(to)
            to.atomics["counts"] += self.top_k * row.alive * STATISTIC_BYTES
            to.atomics["masses"] += row.alive * WIDE_BYTES
            if self.top_k:
                self._bins(to, "counts", n, BINS, STATISTIC_BYTES)
            if row.count_bin >= 0:
                self._bins(to, "counts", n, BINS, STATISTIC_BYTES, looked_up=True)
                self._bins(to, "masses", n, row.count_bin, WIDE_BYTES)
                to.writes["state"] += 3 * WIDE_BYTES
            else:
                self._bins(to, "masses", n, BINS, WIDE_BYTES)
                self._aim(to, n, row)
        return to.traffic()

    def fine_count(self) -> Traffic:
        """Counts and weights of the tokens in the coarse bin of top-k's border."""
        to = Requests()
        for n, row in enumerate(self.rows):
            self.read_state(to, n, "count_bin", times=self.blocks)
            if row.count_bin < 0:
                continue
            self.read_scale(to, n, row, self.blocks)
            self._all_blocks(to, row)
            self._arrivals(to)
            to.atomics["fine_counts"] += row.counted * STATISTIC_BYTES
            to.atomics["fine_masses"] += row.counted * WIDE_BYTES
            self.read_state(to, n, "count_rest")
            self._bins(to, "fine_counts", n, BINS, STATISTIC_BYTES, looked_up=True)
            to.writes["state"] += 2 * WIDE_BYTES
            if self.top_p:
                self.read_state(to, n, "count_above")
                self._bins(to, "fine_masses", n, row.count_fine, WIDE_BYTES)
                self._aim(to, n, row)
        return to.traffic()

    def fine_mass(self) -> Traffic:
        """Weights of the tokens in the coarse bin of top-p's border."""
        to = Requests()
        for n, row in enumerate(self.rows):
            self.read_state(to, n, "mass_bin", times=self.blocks)
            if not row.masses:
                continue
            self.read_scale(to, n, row, self.blocks)
            self._all_blocks(to, row)
            self._arrivals(to)
            to.atomics["fine_masses"] += row.massed * WIDE_BYTES
            self.read_state(to, n, "mass_rest")
            self._bins(to, "fine_masses", n, BINS, WIDE_BYTES, looked_up=True)
            to.writes["state"] += 2 * WIDE_BYTES
        return to.traffic()

    def read_kept(self, to: Requests, n: int, i_v: int | None = None) -> None:
        """What tells which tokens of a row are kept, and the logits of a block or all blocks."""
        row, times = self.rows[n], self.blocks if i_v is None else 1
        self.read_scale(to, n, row, times)
        self.read_state(to, n, "border", "equals", times=times)
        self._parameter(to, "min_p", row, times)
        for each in range(self.blocks) if i_v is None else (i_v,):
            self.read_block(to, row, each)

    def draw(self, draws: int) -> Traffic:
        """Every block's sums; a row's last program reads them and, for a token, the block that it is in."""
        to = Requests()
        for n, row in enumerate(self.rows):
            self.read_kept(to, n)
            self._arrivals(to)
            sequence = span(row.sequence, 1, WIDE_BYTES)
            for name, size in (("above", WIDE_BYTES), ("equal", STATISTIC_BYTES)):
                to.writes[name] += self.blocks * size
                to.read(name, span(n * self.blocks, self.blocks, size))
            to.writes["state"] += WIDE_BYTES
            for name in ("seed", "position") if draws else ():
                to.read(name, sequence)
            for token in row.drawn:
                self.read_block(to, row, token // self.plan.block)
            to.writes["token"] += draws * WIDE_BYTES
            to.writes["logprob"] += draws * STATISTIC_BYTES
        return to.traffic()

    def borders(self) -> Iterator[Traffic]:
        """Of the passes that find which tokens are kept."""
        yield self.peak()
        if self.top_k or self.top_p:
            yield self.coarse()
        if self.top_k:
            yield self.fine_count()
        if self.top_p:
            yield self.fine_mass()


@dataclass(frozen=True)
class PenaltyShape:
    """One call; bytes are those of an element, 0 where there is no such tensor.

    Args:
        histories: of each row, which of the histories is its.
        drafted: tokens drafted before a row.
    """

    vocabulary: int
    histories: Sequence[int]
    drafted: int = 0
    logit_bytes: int = 4
    history_bytes: int = 0
    bias_bytes: int = 0
    counts_bytes: int = 0
    prompt_bytes: int = 0
    repetition_bytes: int = 0
    presence_bytes: int = 0
    frequency_bytes: int = 0


def penalty_traffic(shape: PenaltyShape, plan: Plan) -> Traffic:
    """Whole rows once, one number a row in every program. The prompt is read for a repetition penalty."""
    to, blocks, vocabulary = Requests(), plan.blocks(shape.vocabulary), shape.vocabulary
    prompt = shape.prompt_bytes if shape.repetition_bytes else 0
    wide = {"bias": shape.bias_bytes, "counts": shape.counts_bytes, "prompt": prompt}
    for n, history in enumerate(shape.histories):
        to.read("logits", span(n, 1, vocabulary * shape.logit_bytes))
        to.read("history", span(n, 1, shape.history_bytes), blocks)
        for name, size in wide.items():
            to.read(name, span(history, 1, vocabulary * size))
        to.read("drafted", span(n, 1, shape.drafted * WIDE_BYTES), blocks)
        for name in ("repetition", "presence", "frequency"):
            to.read(name, span(history, 1, getattr(shape, f"{name}_bytes")), blocks)
    to.writes["out"] = len(shape.histories) * vocabulary * STATISTIC_BYTES
    return to.traffic()
