"""The exact bytes that SwiGLU's kernels request from HBM: pure arithmetic.

Tensor names are the kernels' pointer arguments without ``p_``.
"""

from __future__ import annotations

from lit_eff.profiling.modelled import Traffic, whole_sectors


def forward_traffic(rows: int, outputs: int, element_bytes: int = 2, *, packed: bool = False) -> Traffic:
    """``packed``: gates and ups lie in one tensor's rows."""
    size = rows * outputs * element_bytes
    return Traffic({"gate": size, "up": size}, {"out": size}, sectors=_inputs(size, packed))


def backward_traffic(rows: int, outputs: int, element_bytes: int = 2, *, packed: bool = False) -> Traffic:
    """``packed``: gates and ups, and their gradients, lie in one tensor's rows."""
    size = rows * outputs * element_bytes
    sectors = whole_sectors(size) + _inputs(size, packed)
    return Traffic({"dout": size, "gate": size, "up": size}, {"dgate": size, "dup": size}, sectors=sectors)


def _inputs(size: int, packed: bool) -> int:
    return whole_sectors(2 * size) if packed else whole_sectors(size, size)
