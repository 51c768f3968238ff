"""The exact bytes that a decode step requests from HBM, phase by phase and program by program: arithmetic.

A lane that a mask switches off is not requested. Tensor names are the fields of `arguments.Weights`, `Rows`,
`Cache` and `Work`. Reading ahead, and the barriers' counting, are not in it: they request nothing new.

Shapes: L layers, C model dim, H query heads, K kv heads, D head dim, M MLP inner width, V vocabulary, N rows,
J chunks of keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lit_eff.kernels.decode_step.arguments import Shape, Work
from lit_eff.kernels.decode_step.plan import ROW_TILE, Plan
from lit_eff.kernels.requests import Range, Requests, span
from lit_eff.profiling.modelled import STATISTIC_BYTES, Traffic

WIDE_BYTES = 8  # an int64
SQUARES_BYTES = 2 * WIDE_BYTES  # a row's sum of squares: ones and fractions


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


def step_flops(shape: Shape, positions: Sequence[int]) -> dict[str, int]:
    """Of one layer's phases: products with the weights, and with keys and values."""
    flops = {name: 2 * len(positions) * size for name, size in layer_weights(shape).items()}
    return flops | {"attention": 4 * shape.attended * sum(position + 1 for position in positions)}


PARTS = ("maxima", "sums", "partial")  # of a row's attention, which the program that ends last joins


@dataclass(frozen=True)
class Step:
    """One step of rows at ``positions`` of ``sequences``, fed ``tokens``; a cache of so many sequences and
    slots. ``element``: bytes of one of the model's dtype.
    """

    shape: Shape
    plan: Plan
    element: int
    tokens: Sequence[int]
    positions: Sequence[int]
    sequences: Sequence[int]
    cached_sequences: int
    slots: int

    @property
    def rows(self) -> int:
        return len(self.positions)

    @property
    def tiles(self) -> int:
        return -(-self.rows // ROW_TILE)

    @property
    def items(self) -> int:
        """Of attention, before chunks."""
        return self.rows * self.shape.kv_heads

    def shares(self, units: int) -> list[Range]:
        programs = self.plan.programs
        return [(i * units // programs, (i + 1) * units // programs) for i in range(programs)]

    def blocks(self, units: int, most: int) -> list[Range]:
        """What tiles of ``most`` units take, of all programs."""
        return [
            (first, min(first + most, last))
            for start, last in self.shares(units)
            for first in range(start, last, most)
        ]

    def _places(self, to: Requests, tiles: Iterable[tuple[Range, int]]) -> None:
        """Positions, sequences and angles of row tiles, for blocks of pairs."""
        half, angles = self.shape.head_dim // 2, Counter[tuple[int, int]]()
        for (first, last), n in tiles:
            rows = range(n, min(n + ROW_TILE, self.rows))
            for name in ("position", "sequence"):
                to.read(name, span(n, len(rows), STATISTIC_BYTES))
            angles.update((self.positions[row], unit % half) for row in rows for unit in range(first, last))
        for name in ("cosines", "sines"):
            for (position, unit), times in angles.items():
                to.read(name, span(position * half + unit, 1, STATISTIC_BYTES), times)

    def start(self, to: Requests) -> None:
        """What every program asks for before its first phase."""
        rows, programs = self.rows, self.plan.programs
        to.read("position", span(0, rows, STATISTIC_BYTES), programs)
        for i in range(programs):
            row = i % self.items // self.shape.kv_heads
            for name in ("position", "sequence"):
                to.read(name, span(row, 1, STATISTIC_BYTES))
        half = self.plan.block_qkv // 2
        pairs = ((first, min(first + half, last)) for first, last in self.shares(self.shape.qkv // 2))
        self._places(to, [(each, 0) for each in pairs])

    def embed(self, to: Requests) -> None:
        """The residual stream's start, the first norm's sums of squares, and the tokens' history."""
        rows, channels, programs = self.rows, self.shape.channels, self.plan.programs
        row = channels * self.element
        to.read("token", span(0, rows, WIDE_BYTES), programs + 1)
        for token in self.tokens:
            to.read("embedding", span(token, 1, row), 2)
        to.read("gains", span(0, 1, row), self.tiles)
        for name in ("position", "sequence"):
            to.read(name, span(0, rows, STATISTIC_BYTES))
        for name in ("hidden", "scaled"):
            to.writes[name] += rows * row
        to.writes["squares"] += (2 * self.shape.layers + 1) * rows * SQUARES_BYTES
        to.writes["history"] += rows * WIDE_BYTES

    def _squares(self, to: Requests, norm: int, times: int) -> None:
        """Every row's sum of squares for a norm, ``times`` over."""
        to.read("squares", span(norm, 1, self.rows * SQUARES_BYTES), times)

    def _product(self, to: Requests, weight: str, source: str, layer: int, blocks: int) -> None:
        """Every tile of rows reads the whole weight; every block of its rows all rows of the input."""
        size = layer_weights(self.shape)[weight] * self.element
        to.read(weight, span(layer, 1, size), self.tiles)
        inputs = {"attended": self.shape.attended, "inner": self.shape.inner}.get(source, self.shape.channels)
        to.read(source, span(0, self.rows, inputs * self.element), blocks)

    def qkv(self, to: Requests, layer: int) -> None:
        half = self.plan.block_qkv // 2
        blocks = self.blocks(self.shape.qkv // 2, half)
        starts = {first for first, _ in self.shares(self.shape.qkv // 2)}
        self._squares(to, 2 * layer, len(blocks))
        tiles = [(each, n) for each in blocks for n in range(0, self.rows, ROW_TILE)]
        self._places(to, [(each, n) for each, n in tiles if n > 0 or each[0] not in starts])
        self._product(to, "qkv", "scaled", layer, len(blocks))
        heads = {"query": self.shape.heads, "k": self.shape.kv_heads, "v": self.shape.kv_heads}
        for name, count in heads.items():
            to.writes[name] += self.rows * count * self.shape.head_dim * self.element

    def attention(self, to: Requests, layer: int) -> None:
        shape, keys, programs = self.shape, self.plan.keys, self.plan.programs
        chunks, parts_in_all = max(self.positions) // keys + 1, -(-self.slots // keys)
        for item in range(programs, self.items * chunks):
            row = item % self.items // shape.kv_heads
            for name in ("position", "sequence"):
                to.read(name, span(row, 1, STATISTIC_BYTES))
        group = shape.heads * shape.head_dim  # all heads of a row, as they come to no two items
        for row, (position, sequence) in enumerate(zip(self.positions, self.sequences, strict=True)):
            parts, slot = position // keys + 1, shape.kv_heads * shape.head_dim * self.element
            query = group * self.element
            to.read("query", span(row, 1, query), parts)
            first = (layer * self.cached_sequences + sequence) * self.slots
            for name in ("k", "v"):
                to.read(name, span(first, position + 1, slot))
            to.writes["attended"] += query
            if parts == 1:
                continue
            to.atomics["finished"] += parts * shape.kv_heads * STATISTIC_BYTES
            to.writes["finished"] += shape.kv_heads * STATISTIC_BYTES
            for name, each in zip(PARTS, (1, 1, shape.head_dim), strict=True):
                size = each * STATISTIC_BYTES
                to.writes[name] += parts * shape.heads * size
                for head in range(row * shape.heads, (row + 1) * shape.heads):
                    to.read(name, span(head * parts_in_all, parts, size))

    def residual(self, to: Requests, layer: int, weight: str, source: str) -> None:
        """A product added to the residual stream: ``output`` of ``attended``, or ``down`` of ``inner``."""
        row = self.shape.channels * self.element
        norm = 2 * layer + (1 if weight == "output" else 2)
        to.read("hidden", span(0, self.rows, row))
        to.read("gains", span(norm, 1, row), self.tiles)
        blocks = self.blocks(self.shape.channels, self.plan.block_hidden)
        self._product(to, weight, source, layer, len(blocks))
        for name in ("hidden", "scaled"):
            to.writes[name] += self.rows * row
        to.atomics["squares"] += self.plan.programs * self.rows * SQUARES_BYTES

    def gate_up(self, to: Requests, layer: int) -> None:
        blocks = len(self.blocks(self.shape.inner, self.plan.block_inner // 2))
        self._squares(to, 2 * layer + 1, blocks)
        self._product(to, "gate_up", "scaled", layer, blocks)
        to.writes["inner"] += self.rows * self.shape.inner * self.element

    def normed(self, to: Requests) -> None:
        row = self.shape.channels * self.element
        self._squares(to, 2 * self.shape.layers, self.plan.programs)
        to.read("scaled", span(0, self.rows, row))
        to.writes["normed"] += self.rows * row

    def advanced(self, to: Requests) -> None:
        """Positions, moved on."""
        to.read("position", span(0, self.rows, STATISTIC_BYTES))
        to.writes["position"] += self.rows * STATISTIC_BYTES

    def phase(self, to: Requests, name: str, layer: int = 0) -> None:
        """One of ``embed``, a layer's, or ``normed``."""
        if name in ("output", "down"):
            self.residual(to, layer, name, "attended" if name == "output" else "inner")
        elif name in ("embed", "normed"):
            getattr(self, name)(to)
        else:
            getattr(self, name)(to, layer)

    def phase_traffic(self, name: str, layer: int = 0) -> Traffic:
        """Of a phase that is a launch of its own."""
        requests = Requests()
        self.start(requests)
        self.phase(requests, name, layer)
        if name == "down":
            self.advanced(requests)
        return requests.traffic(own=PARTS if name == "attention" else ())

    def traffic(self, phases: Sequence[str]) -> Traffic:
        """Of all layers in one launch; a layer has ``phases``."""
        requests = Requests()
        self.start(requests)
        self.embed(requests)
        for layer in range(self.shape.layers):
            for name in phases:
                self.phase(requests, name, layer)
        self.normed(requests)
        self.advanced(requests)
        requests.read("barrier", span(1, 1, STATISTIC_BYTES), self.plan.programs)
        requests.writes["barrier"] += STATISTIC_BYTES
        return requests.traffic(inside=Work._fields)
