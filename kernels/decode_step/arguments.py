"""The model's sizes, and the kernel's tensors in groups.

Shapes: L layers, C model dim, H query heads, K kv heads, D head dim, M MLP inner width, V vocabulary, N rows,
B sequences, S cache slots, P programs, J key chunks of a full sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Shape:
    """The model's sizes."""

    layers: int
    channels: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    epsilon: float = 1e-5

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def attended(self) -> int:
        return self.heads * self.head_dim


class Weights(NamedTuple):
    """Contiguous, in the model's dtype; every layer's in one tensor, so that the loop over layers is one."""

    embedding: Any  # (V, C)
    gains: Any  # (2 L + 1, C): of the attention's norm and the MLP's of each layer, then of the last norm
    qkv: Any  # (L, (H + 2 K) D, C)
    output: Any  # (L, C, H D)
    gate_up: Any  # (L, 2 M, C), gates first
    down: Any  # (L, C, M)
    cosines: Any  # (S, D / 2) float32
    sines: Any


class Rows(NamedTuple):
    """One entry a row, int64 tokens, int32 otherwise; history (B, S) int64 keeps the tokens by slot."""

    token: Any
    position: Any
    sequence: Any
    history: Any


class Cache(NamedTuple):
    """Keys and values (L, B, S, K, D) in the weights' dtype, of the same strides; S, K and D contiguous."""

    k: Any
    v: Any
    stride_layer: int
    stride_sequence: int
    stride_slot: int
    stride_head: int


class Work(NamedTuple):
    """What the phases of a layer hand on, contiguous."""

    hidden: Any  # (N, C) the residual stream
    scaled: Any  # (N, C) the same times the gain of the norm that reads it next
    normed: Any  # (N, C) normed for the output head, after the last layer
    squares: Any  # (2 L + 1, 2, N) int64: sums of squares that each norm takes, ones and fractions
    query: Any  # (N, H D)
    attended: Any  # (N, H D)
    inner: Any  # (N, M)
    partial: Any  # (N, H, J, D) float32
    maxima: Any  # (N, H, J) float32, in base 2
    sums: Any  # (N, H, J) float32
    finished: Any  # (N, K) int32, zero between launches: chunks of a row and kv head that are done
    barrier: Any  # (2,) int32: arrivals so far; how many there were when the last launch ended
