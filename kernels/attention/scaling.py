"""How HBM traffic grows with N, d and M, by formula: Theorem 2 of FlashAttention (Dao et al. 2022) as slopes.

Standard attention moves Theta(N d + N^2) elements a head, FlashAttention Theta(N^2 d^2 / M) for an on-chip
memory of M elements, d <= M <= N d; N is the sequence length, d the head dim. On logarithmic axes these are
lines, and the exponents their slopes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lit_eff.kernels.attention.io_model import (
    AttentionShape,
    flash1_forward,
    flash2_forward,
    standard_forward,
)
from lit_eff.profiling.modelled import Traffic
from lit_eff.profiling.report import ReportTable

Axis = Literal["N", "d", "M"]

# Far from where the terms in N d, which the theorem neglects, would bend the lines.
SIZES: Mapping[Axis, tuple[int, ...]] = {
    "N": (4096, 8192, 16_384, 32_768),
    "d": (32, 64, 128, 256),
    "M": (16_384, 32_768, 65_536, 131_072, 262_144),
}
MIDDLE: Mapping[Axis, int] = {"N": 16_384, "d": 64, "M": 65_536}


def flash2_blocks(head_dim: int, sram_elements: int) -> int:
    """Rows of the equal Q, O, K and V blocks that fill an on-chip memory of ``sram_elements``."""
    return max(sram_elements // (4 * head_dim), 1)


def _flash2(shape: AttentionShape, sram_elements: int) -> Traffic:
    block = flash2_blocks(shape.head_dim, sram_elements)
    return flash2_forward(shape, block, block)


# What the theorem says of either loop order, and of standard attention at N far over d.
FLASH: Mapping[Axis, int] = {"N": 2, "d": 2, "M": -1}
STANDARD: Mapping[Axis, int] = {"N": 2, "d": 0, "M": 0}
# By name, each of a shape and an on-chip memory in elements.
ALGORITHMS: Mapping[str, Callable[[AttentionShape, int], Traffic]] = {
    "standard": lambda shape, _: standard_forward(shape),
    "FlashAttention-1 order": flash1_forward,
    "FlashAttention-2 order": _flash2,
}


@dataclass(frozen=True)
class Scaling:
    """One algorithm along one axis: sizes, modelled bytes of one head, and the slope fitted to their logs."""

    algorithm: str
    axis: Axis
    sizes: tuple[int, ...]
    hbm_bytes: tuple[int, ...]
    slope: float


def theorem_scalings(sizes: Mapping[Axis, Sequence[int]] = SIZES) -> list[Scaling]:
    """Every algorithm along every axis, the other two sizes at `MIDDLE`; one float16 head, not causal."""
    scalings = []
    for name, algorithm in ALGORITHMS.items():
        for axis, values in sizes.items():
            points = tuple(_bytes(algorithm, {**MIDDLE, axis: value}) for value in values)
            slope = float(np.polyfit(np.log(values), np.log(points), 1)[0])
            scalings.append(Scaling(name, axis, tuple(values), points, slope))
    return scalings


def theorem_table(found: Sequence[Scaling]) -> ReportTable:
    """Exponents of each algorithm: the theorem's, and fitted to its formula."""
    rows = []
    for each in found:
        exponents = STANDARD if each.algorithm == "standard" else FLASH
        values = f"{each.sizes[0]:,} to {each.sizes[-1]:,}"
        exponent = float(exponents[each.axis])
        rows.append((each.algorithm, each.axis, values, exponent, round(each.slope, 2) + 0.0))
    return ReportTable(
        "Exponents of attention's traffic by formula",
        "HBM bytes of one head's forward (modelled) as a power of N, d and M (elements on chip), fitted on "
        "logarithms; Theorem 2 of FlashAttention.",
        ("algorithm", "variable", "values", "theorem", "modelled"),
        tuple(rows),
    )


def _bytes(algorithm: Callable[[AttentionShape, int], Traffic], at: Mapping[Axis, int]) -> int:
    shape = AttentionShape(1, at["N"], at["N"], 1, 1, at["d"])
    return algorithm(shape, at["M"]).total
