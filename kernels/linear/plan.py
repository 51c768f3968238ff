"""How a product's work is cut: by the weight's shape and the device, never by the number of rows.

Shapes: O weight rows, C input channels.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUP = 64  # channels of a row that share a scale, at the least
MAX_ROW_TILE = 64


@dataclass(frozen=True)
class Plan:
    """A program takes ``block_o`` rows of the weight, a step ``lanes * chunk`` channels.

    ``lanes`` settle the order of the sums, and then ``chunk`` if there are several or the weight is int8:
    these depend on nothing but the weight. The rest is speed.
    """

    block_o: int
    lanes: int
    chunk: int
    num_warps: int
    num_stages: int


def plan_of(outputs: int, channels: int, element_bytes: int, capability: int) -> Plan:
    return Plan(64, 1, 64, 4, 4)


def row_tile(rows: int) -> int:
    """Rows a program takes: the least width of the matrix instruction, or wider to read the weight less often."""
    tile = 16
    while tile < min(rows, MAX_ROW_TILE):
        tile *= 2
    return tile
