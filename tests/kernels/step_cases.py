"""Decode steps that several tests share.

Shapes: L layers, C model dim, H query heads, K kv heads, D head dim, M MLP inner width, V vocabulary, N rows,
B sequences, S cache slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lit_eff.kernels.decode_step.arguments import Rows, Shape, Weights
from lit_eff.kernels.decode_step.call import cache_of, new_work, step_launches
from lit_eff.kernels.decode_step.plan import Plan
from lit_eff.kernels.decode_step.reference import decode_step_reference

SMALL = Shape(layers=2, channels=96, heads=4, kv_heads=2, head_dim=16, inner=112, vocabulary=50)
# Shares of a few rows, tiles that hold more than a share and fewer, several chunks of keys.
SMALL_PLAN = Plan("launches", programs=5, keys=128, warp_keys=16, chunk=16, block_qkv=16, num_stages=3)


@dataclass
class StepCase:
    """A model of random weights, and B sequences that all hold S keys and values already."""

    shape: Shape = SMALL
    sequences: int = 3
    slots: int = 70
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    weights: Weights = field(init=False)
    k_LBSKD: Tensor = field(init=False)
    v_LBSKD: Tensor = field(init=False)

    def __post_init__(self) -> None:
        shape = self.shape
        generator = torch.Generator().manual_seed(7)

        def randn(*sizes: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(*sizes, generator=generator)).to(self.device, self.dtype)

        layers, channels, inner = shape.layers, shape.channels, shape.inner
        angles = torch.arange(self.slots)[:, None] / 100 ** torch.linspace(0, 1, shape.head_dim // 2)
        self.weights = Weights(
            randn(shape.vocabulary, channels),
            1 + randn(2 * layers + 1, channels, scale=0.2),
            randn(layers, shape.qkv, channels, scale=channels**-0.5),
            randn(layers, channels, shape.attended, scale=shape.attended**-0.5),
            randn(layers, 2 * inner, channels, scale=channels**-0.5),
            randn(layers, channels, inner, scale=inner**-0.5),
            angles.cos().to(self.device),
            angles.sin().to(self.device),
        )
        size = (layers, self.sequences, self.slots, shape.kv_heads, shape.head_dim)
        self.k_LBSKD, self.v_LBSKD = randn(*size), randn(*size)

    def rows(self, tokens: list[int], positions: list[int], sequences: list[int]) -> Rows:
        def integers(values: list[int], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=self.device)

        history = torch.full((self.sequences, self.slots), -1, dtype=torch.int64, device=self.device)
        i32 = torch.int32
        return Rows(
            integers(tokens, torch.int64), integers(positions, i32), integers(sequences, i32), history
        )

    def run(
        self, row: Rows, plan: Plan, *, spans: tuple[tuple[int, int], ...] | None = None, advance: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states (N, C) after ``spans`` of layers, and the caches, which are copies."""
        k_LBSKD, v_LBSKD = self.k_LBSKD.clone(), self.v_LBSKD.clone()
        count = len(row.token)
        work = new_work(self.shape, plan, count, self.slots, self.weights.embedding)
        work = work._replace(
            squares=work.squares.fill_(-1),
            **{name: getattr(work, name).fill_(float("nan")) for name in ("hidden", "scaled", "query")},
        )
        capability = 80 if self.device == "cpu" else 90
        for span in spans or ((0, self.shape.layers),):
            last = advance if span[1] == self.shape.layers else 0
            cache = cache_of(k_LBSKD, v_LBSKD)
            for launch in step_launches(
                self.shape, plan, self.weights, row, cache, work, count, span, capability, last
            ):
                launch.run()
        return work.hidden, k_LBSKD, v_LBSKD

    def reference(
        self, row: Rows, dtype: torch.dtype | None = None, layers: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What `run` should yield, computed in ``dtype``."""
        dtype = self.dtype if dtype is None else dtype
        k_LBSKD, v_LBSKD = self.k_LBSKD.to(dtype, copy=True), self.v_LBSKD.to(dtype, copy=True)
        angle = torch.promote_types(dtype, torch.float32)
        weights = Weights(
            *(each.to(dtype) for each in self.weights[:6]), *(each.to(angle) for each in self.weights[6:])
        )
        hidden = decode_step_reference(
            weights, row.token, row.position.long(), row.sequence.long(), k_LBSKD, v_LBSKD, self.shape.heads,
            self.shape.epsilon, layers or (0, self.shape.layers),
        )  # fmt: skip
        return hidden, k_LBSKD, v_LBSKD


def persistent(plan: Plan) -> Plan:
    return replace(plan, form="persistent")
