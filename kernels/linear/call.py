"""One checked call of the skinny linear, reduced to what its launch needs.

Shapes: N rows, C input channels, O weight rows, F outputs (O, or O / 2 with swiglu), S scale groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lit_eff.kernels.device import capability_of
from lit_eff.kernels.linear.arguments import Matrix, RowNorm, Scales
from lit_eff.kernels.linear.plan import ROW_TILE, Plan, plan_of
from lit_eff.kernels.linear.reference import Norm


def matrix(tensor: Tensor) -> Matrix:
    """Its strides; that of a single row is never used, and must not set a call of one row apart."""
    stride_row, stride_column = tensor.stride()
    return Matrix(tensor, tensor.shape[1] if tensor.shape[0] == 1 else stride_row, stride_column)


@dataclass(frozen=True)
class Product:
    """Rows, weight, scales and norm: what every kernel that multiplies by a weight starts from."""

    x_NC: Tensor
    weight_OC: Tensor
    scales_OS: Tensor | None = None
    norm: Norm | None = None
    target: int | None = None  # compile for this capability rather than for the tensors' device

    @property
    def capability(self) -> int:
        return capability_of(self.x_NC.device) if self.target is None else self.target

    @property
    def rows(self) -> int:
        return self.x_NC.shape[0]

    @property
    def row_tiles(self) -> int:
        return -(-self.rows // ROW_TILE)

    @property
    def channels(self) -> int:
        return self.x_NC.shape[1]

    @property
    def plan(self) -> Plan:
        """By the weight's shape and the device, never by the rows."""
        outputs, channels = self.weight_OC.shape
        return plan_of(outputs, channels, self.weight_OC.element_size(), self.capability)

    @property
    def early(self) -> bool:
        """Whether the launch may start before the one ahead of it ends (Hopper and later)."""
        return self.plan.early and self.capability >= 90

    def arguments(self) -> dict[str, Any]:
        """What `tile.products` and `norm.statistics` take."""
        plan, norm, scales = self.plan, self.norm, self.scales_OS
        return {
            "x": matrix(self.x_NC),
            "weight": matrix(self.weight_OC),
            "scales": None if scales is None else Scales(*matrix(scales), self.channels // scales.shape[1]),
            "norm": None if norm is None else RowNorm(_packed(norm.weight_C), _packed(norm.bias_C), norm.eps),
            "rows": self.rows,
            "channels": self.channels,
            "ROWS": ROW_TILE,
            "BLOCK_O": plan.block_o,
            "LANES": plan.lanes,
            "CHUNK": plan.chunk,
            "EVEN": self.channels % (plan.lanes * plan.chunk) == 0,
            # Asked instead of the group: Triton 3.6 cannot compare a group that holds a None.
            "CENTERED": None if norm is None else norm.centered,
        }


def _packed(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()
