"""The launch of rotation and cache write with its modelled bytes, and places of tokens for other kernels.

Shapes: B batch, T query length, S cache slots, P pages a row, H query heads, K kv heads, D head dim, R rotary
pairs (half the rotary dim).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_eff.kernels.catalogue import Operation
from lit_eff.kernels.rope.call import RopeCall, RowSlots
from lit_eff.kernels.rope.io_model import Places, RopeShape, Token, rope_traffic
from lit_eff.kernels.rope.operator import rope_launch
from lit_eff.kernels.rope.reference import RotaryTables
from lit_eff.profiling.modelled import ModelledLaunch

EPSILON = 1e-5
TURN_FLOPS = 3  # a channel's: two products and a sum
NORM_FLOPS = 4


class Drawn(NamedTuple):
    """Where tokens go, as tensors and as the I/O models take it; ``cache`` are a cache's first dimensions."""

    slots: RowSlots
    places: Places
    cache: tuple[int, int]


@dataclass(frozen=True)
class PlacesCase:
    """``rotary`` channels turn; ``page`` is the page size, 0 for none.

    ``ragged``: rows have fewer tokens than ``queries``. ``positions``: these are given.
    """

    batch: int
    queries: int
    kv_heads: int
    head_dim: int
    capacity: int = 20
    rotary: int = 0
    page: int = 0
    ragged: bool = False
    positions: bool = False
    dtype: str = "float16"

    @property
    def element(self) -> torch.dtype:
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    def randn(self, device: torch.device, *size: int) -> Tensor:
        return torch.randn(*size, dtype=self.element, device=device)

    def tables(self, device: torch.device) -> RotaryTables | None:
        """Of as many positions as slots."""
        if not self.rotary:
            return None
        cos_MR, sin_MR = torch.rand(2, self.capacity, self.rotary // 2, device=device)
        return RotaryTables(cos_MR.clone(), sin_MR.clone())

    def drawn(self, device: torch.device) -> Drawn:
        """Drawn on the CPU whatever the device: the I/O model needs to know."""

        def below(high: int, *size: int) -> Tensor:
            return torch.randint(0, high, size)

        lengths_B = below(self.capacity - self.queries + 1, self.batch)
        counts_B = below(self.queries + 1, self.batch) if self.ragged else None
        positions_BT = below(self.capacity, self.batch, self.queries) if self.positions else None
        pages = -(-self.capacity // self.page) if self.page else 0
        table_BP = torch.randperm(self.batch * pages).view(self.batch, pages).int() if pages else None

        def token(b: int, t: int) -> Token:
            slot = int(lengths_B[b]) + t
            position = slot if positions_BT is None else int(positions_BT[b, t])
            if table_BP is None:
                return Token(b * self.queries + t, position, b * self.capacity + slot, 0)
            page = slot // self.page
            first = int(table_BP[b, page]) * self.page
            return Token(b * self.queries + t, position, first + slot % self.page, b * pages + page)

        counts = [self.queries] * self.batch if counts_B is None else counts_B.tolist()
        places = Places(
            self.batch,
            self.queries,
            tuple(token(b, t) for b in range(self.batch) for t in range(counts[b])),
            self.rotary,
            query_length_bytes=8 * self.ragged,
            position_bytes=8 * self.positions,
            page_bytes=4 * (self.page > 0),
        )
        tensors = (lengths_B, counts_B, table_BP, positions_BT)
        slots = RowSlots(*(each if each is None else each.to(device) for each in tensors))  # type: ignore[arg-type]
        cache = (self.batch * pages, self.page) if self.page else (self.batch, self.capacity)
        return Drawn(slots, places, cache)


@dataclass(frozen=True)
class RopeCase(PlacesCase):
    """``heads`` are the queries'; ``norm`` is each head's, of queries and keys."""

    heads: int = 4
    norm: bool = False

    @property
    def flops(self) -> int:
        """A token's."""
        heads = self.heads + self.kv_heads
        return heads * (TURN_FLOPS * self.rotary + NORM_FLOPS * self.norm * self.head_dim)


def draw_places(random: Random) -> dict[str, Any]:
    """Arguments of a `PlacesCase`."""
    head_dim = 2 * random.randint(8, 70)
    queries = random.randint(1, 5)
    return {
        "batch": random.randint(1, 6),
        "queries": queries,
        "kv_heads": random.randint(1, 4),
        "head_dim": head_dim,
        "capacity": queries + random.randint(0, 30),
        "rotary": random.choice((0, head_dim, 2 * random.randint(1, head_dim // 2))),
        "page": random.choice((0, random.randint(1, 9))),
        "ragged": random.random() < 0.5,
        "positions": random.random() < 0.5,
        "dtype": random.choice(("float16", "float32")),
    }


def draw(random: Random) -> RopeCase:
    return RopeCase(**draw_places(random), heads=random.randint(1, 20), norm=random.random() < 0.5)


def launches(case: RopeCase, device: torch.device, capability: int) -> list[ModelledLaunch]:
    """Queries, keys and values are views of one projection."""
    drawn, split = case.drawn(device), [case.heads, case.kv_heads, case.kv_heads]
    projected = case.randn(device, case.batch, case.queries, sum(split), case.head_dim)
    q_BTHD, k_BTKD, v_BTKD = torch.split(projected, split, dim=2)
    out_BTHD = case.randn(device, case.batch, case.queries, case.heads, case.head_dim)
    k_cache, v_cache = (case.randn(device, *drawn.cache, case.kv_heads, case.head_dim) for _ in range(2))
    q_norm_D, k_norm_D = (case.randn(device, case.head_dim) if case.norm else None for _ in range(2))
    call = RopeCall(
        q_BTHD,
        k_BTKD,
        v_BTKD,
        out_BTHD,
        k_cache,
        v_cache,
        drawn.slots,
        case.tables(device),
        q_norm_D,
        k_norm_D,
        EPSILON,
        capability,
    )
    size = case.element.itemsize
    shape = RopeShape(
        drawn.places, case.heads, case.kv_heads, case.head_dim, size, gain_bytes=size * case.norm
    )
    flops = case.flops * len(drawn.places.tokens)
    return [ModelledLaunch(rope_launch(call), rope_traffic(shape), flops)]


OPERATIONS = (
    Operation(
        name="rope",
        case=RopeCase,
        small=(
            RopeCase(1, 1, 2, 32, rotary=32),
            RopeCase(2, 3, 2, 32, rotary=32),
            RopeCase(2, 3, 2, 32, dtype="float32"),
            RopeCase(2, 3, 2, 32, rotary=12),
            RopeCase(2, 3, 2, 80, rotary=80, ragged=True),
            RopeCase(2, 3, 2, 22, rotary=6, norm=True, dtype="float32"),
            RopeCase(2, 3, 3, 64, rotary=64, page=6, heads=9),
            RopeCase(2, 3, 1, 128, rotary=64, page=16, ragged=True, positions=True, heads=20),
            RopeCase(2, 3, 12, 32, rotary=32, ragged=True, positions=True, norm=True, heads=12),
            RopeCase(2, 3, 2, 32, page=4, norm=True),
            RopeCase(4, 2, 3, 48, rotary=48, page=7, norm=True, heads=5, dtype="float32"),
            RopeCase(2, 2, 1, 256, rotary=128, positions=True, heads=9),
        ),
        typical=RopeCase(64, 1, 8, 128, 8192, rotary=128, page=16, heads=32, dtype="bfloat16"),
        draw=draw,
        launches=launches,
    ),
)
