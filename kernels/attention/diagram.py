"""Standard attention's three kernels beside flash attention's one, as pictures of what crosses to HBM."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from lit_eff.kernels.attention.io_model import AttentionShape
from lit_eff.kernels.attention.standard.tiles import product_tiles
from lit_eff.kernels.attention.standard.traffic_model import standard_traffic
from lit_eff.kernels.attention.tiles import Tiles, shipped_tiles
from lit_eff.kernels.attention.traffic_model import forward_traffic
from lit_eff.profiling.diagram import KernelSchedule, Tensor, TileSchedule, schedule_figure
from lit_eff.profiling.modelled import STATISTIC_BYTES, Traffic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Names of the papers for those of the kernels' arguments.
NAMES = {"q": "Q", "k": "K", "v": "V", "scores": "S", "weights": "P", "out": "O", "lse": "LSE"}


def attention_diagram(shape: AttentionShape, capability: int) -> Figure:
    """Both forwards of ``shape`` with the tiles shipped for ``capability``; bytes requested, by I/O model.

    ``shape`` has no documents, starts, sinks or slopes: the picture shows what all attention moves.
    """
    tiles = shipped_tiles("forward", shape.head_dim, shape.element_bytes, capability)
    return schedule_figure(
        [standard_schedule(shape), flash_schedule(shape, tiles)],
        f"Attention forward: batch {shape.batch}, {shape.heads} heads of {shape.head_dim}, {shape.queries:,} "
        f"queries, {shape.keys:,} keys{', causal' if shape.is_causal else ''}; bytes requested, modelled",
    )


def standard_schedule(shape: AttentionShape) -> TileSchedule:
    """Scores and weights are made, written to HBM and read back."""
    scores, softmax, output = standard_traffic(shape).values()
    tile = product_tiles(shape.head_dim, shape.element_bytes)
    tensors = _tensors(shape)
    return TileSchedule(
        "Standard attention",
        {name: tensors[name] for name in ("Q", "K", "S", "P", "V", "O")},
        (
            _kernel(
                "S = Q K' / sqrt(d)",
                scores,
                (f"for each tile of {tile.block_m} x {tile.block_n} scores:", "one product"),
                "one tile of S",
            ),
            _kernel("P = softmax(S)", softmax, ("for each row of S",), "rows of S"),
            _kernel(
                "O = P V",
                output,
                (f"for each {tile.block_m} queries:", f"for each {tile.block_n} keys: add a product"),
                "one tile of O",
            ),
        ),
    )


def flash_schedule(shape: AttentionShape, tiles: Tiles) -> TileSchedule:
    """Scores and weights are made tile by tile in SRAM and registers and never leave."""
    tensors = _tensors(shape)
    programs = shape.batch * shape.heads * ceil(shape.queries / tiles.block_m)
    return TileSchedule(
        "Flash attention",
        {name: tensors[name] for name in ("Q", "K", "V", "O", "LSE")},
        (
            _kernel(
                "softmax(Q K' / sqrt(d)) V",
                forward_traffic(shape, tiles),
                (
                    f"for each tile of {tiles.block_m} queries (one of {programs:,} programs): load Q",
                    f"for each tile of {tiles.block_n} keys: load K and V; S, P, and O rescaled",
                    "write O and LSE",
                ),
                f"S and P, {tiles.block_m} x {tiles.block_n}, are made and used here; they never leave",
            ),
        ),
    )


def _kernel(name: str, traffic: Traffic, loops: tuple[str, ...], stays: str) -> KernelSchedule:
    reads, writes = (
        {NAMES[tensor]: size for tensor, size in each.items()} for each in (traffic.reads, traffic.writes)
    )
    return KernelSchedule(name, reads, writes, loops, f"stays: {stays}")


def _tensors(shape: AttentionShape) -> dict[str, Tensor]:
    rows = shape.batch * shape.heads * shape.queries
    like_q = _matrix(shape.batch, shape.heads, shape.queries, shape.head_dim, shape.element_bytes)
    like_k = _matrix(shape.batch, shape.kv_heads, shape.keys, shape.head_dim, shape.element_bytes)
    scores = _matrix(shape.batch, shape.heads, shape.queries, shape.keys, shape.element_bytes)
    statistic = Tensor(f"{shape.batch} x {shape.heads} x\n{shape.queries:,}", rows * STATISTIC_BYTES)
    return {"Q": like_q, "O": like_q, "K": like_k, "V": like_k, "S": scores, "P": scores, "LSE": statistic}


def _matrix(batch: int, heads: int, rows: int, columns: int, element_bytes: int) -> Tensor:
    text = f"{batch} x {heads} x\n{rows:,} x {columns:,}"
    return Tensor(text, batch * heads * rows * columns * element_bytes)
