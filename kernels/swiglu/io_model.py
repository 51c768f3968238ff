"""The exact bytes that SwiGLU's kernels request from HBM: pure arithmetic.

Tensor names are the kernels' pointer arguments without ``p_``.
"""

from __future__ import annotations

from lit_eff.profiling.modelled import Traffic


def forward_traffic(rows: int, outputs: int, element_bytes: int = 2) -> Traffic:
    size = rows * outputs * element_bytes
    return Traffic({"gate": size, "up": size}, {"out": size})


def backward_traffic(rows: int, outputs: int, element_bytes: int = 2) -> Traffic:
    size = rows * outputs * element_bytes
    return Traffic({"dout": size, "gate": size, "up": size}, {"dgate": size, "dup": size})
