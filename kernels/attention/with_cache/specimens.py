"""The launches of attention on a cache with their modelled bytes: the portable kernels', and Hopper's.

Shapes: B batch, T query length, S cache slots, P pages a row, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.kernels.attention.with_cache.call import CacheCall
from lit_eff.kernels.attention.with_cache.hopper_io_model import hopper_cache_traffic, hopper_split_sectors
from lit_eff.kernels.attention.with_cache.io_model import (
    CacheShape,
    cache_traffic,
    combine_flops,
    split_flops,
)
from lit_eff.kernels.attention.with_cache.operator import launches_by
from lit_eff.kernels.attention.with_cache.paths import obstacle
from lit_eff.kernels.attention.with_cache.sectors import combine_sectors, split_sectors
from lit_eff.kernels.attention.with_cache.split import split_launch
from lit_eff.kernels.attention.with_cache.tiles import HOPPER, CacheTiles, Deal, Unit
from lit_eff.kernels.catalogue import Operation
from lit_eff.profiling.devices import DEVICES
from lit_eff.profiling.launch import Launch
from lit_eff.profiling.modelled import ModelledLaunch, Traffic

A100_SMS = 108
# Constants at which a few hundred slots make many chunks and segments.
SMALL = CacheTiles(rows=16, block_n=16, chunk=32, segment=64, num_warps=4, num_stages=2)


@dataclass(frozen=True)
class CachedCase:
    """One call. Lengths are drawn, the first as long as fits; so are query lengths if ``ragged``.

    ``unit`` chooses small constants and that unit of work (chunk, segment or row); by default the constants
    and the deal are the device's.
    """

    batch: int
    queries: int
    heads: int
    kv_heads: int
    head_dim: int
    capacity: int
    page_size: int = 0
    window: int | None = None
    softcap: float | None = None
    ragged: bool = False
    tree: bool = False
    sinks: bool = False
    alibi: bool = False
    unit: str = ""
    dtype: str = "float32"

    @property
    def given(self) -> tuple[CacheTiles, Deal] | None:
        """The constants and the deal that ``unit`` asks for."""
        if not self.unit:
            return None
        unit = Unit(self.unit)
        size, runs = {Unit.CHUNK: (SMALL.chunk, 2), Unit.SEGMENT: (SMALL.segment, 2)}.get(
            unit, (SMALL.segment, 1)
        )
        return SMALL, Deal(unit, -(-self.capacity // size), runs)


@dataclass(frozen=True)
class _GivenCall(CacheCall):
    """A call whose constants and deal may be given."""

    given: tuple[CacheTiles, Deal] | None = None

    @property
    def processors(self) -> int:
        """Of the table's first device of this capability, so that every place gives the same launches."""
        return next((device.sms for device in DEVICES if device.capability == self.capability), A100_SMS)

    @property
    def tiles(self) -> CacheTiles:
        return super().tiles if self.given is None else self.given[0]

    @property
    def deal(self) -> Deal:
        return super().deal if self.given is None else self.given[1]


def cached_call(case: CachedCase, device: torch.device, capability: int) -> tuple[CacheCall, CacheShape]:
    """The call of a case on new tensors, and its shape with the lengths that were drawn."""
    dtype = getattr(torch, case.dtype)
    # Small, and the model needs them: drawn on the CPU whatever the device.
    lengths_B = torch.randint(0, case.capacity - case.queries + 1, (case.batch,))
    lengths_B[0] = case.capacity - case.queries
    query_lengths_B = torch.randint(0, case.queries + 1, (case.batch,)) if case.ragged else None
    page_table_BP = None
    slots = (case.batch, case.capacity)
    if case.page_size:
        pages = case.batch * case.capacity // case.page_size
        # The first page is nobody's: what a kernel reads there, it reads for nothing.
        page_table_BP = 1 + torch.randperm(pages).view(case.batch, -1).int()
        slots = (pages + 1, case.page_size)
    k_cache, v_cache = (
        torch.randn(*slots, case.kv_heads, case.head_dim, dtype=dtype, device=device) for _ in range(2)
    )
    tree_mask_BTT = torch.ones(case.batch, case.queries, case.queries, dtype=torch.uint8, device=device)
    call = _GivenCall(
        torch.randn(case.batch, case.queries, case.heads, case.head_dim, dtype=dtype, device=device),
        k_cache,
        v_cache,
        lengths_B.to(device),
        None if page_table_BP is None else page_table_BP.to(device),
        None if query_lengths_B is None else query_lengths_B.to(device),
        tree_mask_BTT if case.tree else None,
        torch.rand(case.heads, device=device) if case.sinks else None,
        torch.rand(case.heads, device=device) if case.alibi else None,
        case.head_dim**-0.5,
        case.window,
        case.softcap,
        None,
        target=capability,
        given=case.given,
    )
    shape = CacheShape(
        case.queries,
        case.heads,
        case.kv_heads,
        case.head_dim,
        tuple(lengths_B.tolist()),
        case.capacity,
        dtype.itemsize,
        None if query_lengths_B is None else tuple(query_lengths_B.tolist()),
        case.page_size,
        case.window,
        case.tree,
        case.sinks,
        case.alibi,
    )
    return call, shape


def _outputs(call: CacheCall) -> tuple[Tensor, Tensor]:
    batch, queries, heads, _ = call.q_BTHD.shape
    return torch.empty_like(call.q_BTHD), torch.empty(batch, heads, queries, device=call.q_BTHD.device)


def _modelled(
    launches: list[Launch],
    shape: CacheShape,
    call: CacheCall,
    traffic: list[Traffic],
    least: int | None,
) -> list[ModelledLaunch]:
    """The split kernel's launch, which reads ``least`` sectors, and the combine kernel's if there is one."""
    sectors = (least, combine_sectors(shape, call.tiles, call.deal))
    flops = (split_flops(shape), combine_flops(shape, call.tiles, call.deal))
    known = zip(
        launches, traffic, sectors, flops, strict=False
    )  # rows that are walked whole need no combining
    return [
        ModelledLaunch(launch, replace(each, sectors=own), own_flops)
        for launch, each, own, own_flops in known
    ]


def launches(case: CachedCase, device: torch.device, capability: int) -> list[ModelledLaunch]:
    """The portable kernels, also where Hopper's would be taken."""
    call, shape = cached_call(case, device, capability)
    tiles, share = call.tiles, call.deal
    traffic, least = cache_traffic(shape, tiles, share), split_sectors(shape, tiles, share)
    return _modelled(launches_by(split_launch, call, *_outputs(call)), shape, call, traffic, least)


def hopper_launches(case: CachedCase, device: torch.device, capability: int) -> list[ModelledLaunch]:
    """Hopper's split kernel, and the combine kernel that follows it.

    Raises:
        UserError: for a case that the split kernel does not take, or another device.
    """
    from lit_eff.kernels.attention.with_cache.hopper import split_launch as hopper_split_launch

    call, shape = cached_call(case, device, capability)
    call = replace(call, costs=HOPPER)
    reason = obstacle(call)
    if reason is not None:
        raise UserError(
            f"the Hopper kernel does not take this case: {reason}; use operation 'attention_with_cache'"
        )
    tiles, share = call.tiles, call.deal
    traffic, least = hopper_cache_traffic(shape, tiles, share), hopper_split_sectors(shape, tiles, share)
    return _modelled(launches_by(hopper_split_launch, call, *_outputs(call)), shape, call, traffic, least)


def draw(random: Random) -> CachedCase:
    kv_heads = random.randint(1, 2)
    page_size = random.choice((0, 0, 8, 16, 32))
    queries = random.randint(1, 4)
    capacity = random.randint(queries, 120)
    if page_size:
        capacity = -(-capacity // page_size) * page_size
    return CachedCase(
        random.randint(1, 2),
        queries,
        kv_heads * random.randint(1, 3),
        kv_heads,
        random.choice((16, 24, 32, 64)),
        capacity,
        page_size,
        window=random.choice((None, random.randint(1, 60))),
        softcap=random.choice((None, 2.0)),
        ragged=random.random() < 0.4,
        tree=random.random() < 0.3,
        sinks=random.random() < 0.3,
        alibi=random.random() < 0.3,
        unit=random.choice(("", *(unit.value for unit in Unit))),
        dtype=random.choice(("float16", "float32")),
    )


def draw_hopper(random: Random) -> CachedCase:
    """As :func:`draw`, of what the Hopper kernel takes."""
    case = draw(random)
    dtype = random.choice(("float16", "bfloat16"))
    return replace(case, head_dim=random.choice((64, 128)), unit="", dtype=dtype)


OPERATIONS = (
    Operation(
        name="attention_with_cache",
        case=CachedCase,
        small=(
            CachedCase(1, 1, 1, 1, 16, 1),
            CachedCase(2, 1, 4, 1, 64, 700, dtype="float16"),  # decoding
            CachedCase(1, 4, 2, 1, 24, 600, sinks=True),
            CachedCase(1, 1, 1, 1, 32, 1200, page_size=8),
            CachedCase(2, 3, 2, 1, 16, 90, unit="chunk", dtype="float16"),
            CachedCase(2, 3, 2, 1, 16, 90, unit="segment"),
            CachedCase(2, 3, 2, 1, 16, 90, unit="row", alibi=True),
            CachedCase(2, 9, 4, 1, 16, 90, unit="chunk", ragged=True, sinks=True, window=20),
            CachedCase(3, 9, 4, 1, 16, 90, unit="row", ragged=True, sinks=True, window=20),
            CachedCase(2, 3, 2, 2, 16, 96, page_size=8, unit="chunk", tree=True, alibi=True),  # verifying
            CachedCase(2, 3, 2, 2, 16, 96, page_size=8, unit="segment", tree=True, ragged=True),
            CachedCase(2, 3, 2, 2, 16, 192, page_size=32, unit="row", tree=True, softcap=2.0),
            CachedCase(2, 3, 2, 1, 16, 96, page_size=16, unit="segment", window=40),
            CachedCase(2, 20, 2, 1, 16, 60, page_size=4, dtype="float16", window=40),
        ),
        typical=CachedCase(16, 1, 32, 8, 128, 8192, page_size=16, dtype="bfloat16"),
        draw=draw,
        launches=launches,
    ),
    Operation(
        name="attention_with_cache_hopper",
        case=CachedCase,
        small=(
            CachedCase(1, 1, 4, 1, 64, 700, dtype="bfloat16"),
            CachedCase(2, 4, 8, 2, 128, 5000, sinks=True, window=300, dtype="bfloat16"),
            CachedCase(3, 9, 8, 1, 64, 1000, ragged=True, alibi=True, dtype="float16"),
            CachedCase(2, 8, 8, 2, 128, 1024, page_size=16, tree=True, dtype="bfloat16"),
            CachedCase(2, 1, 8, 2, 64, 1024, page_size=256, softcap=20.0, dtype="bfloat16"),
        ),
        typical=CachedCase(16, 1, 32, 8, 128, 8192, page_size=16, dtype="bfloat16"),
        draw=draw_hopper,
        launches=hopper_launches,
        gluon=True,
    ),
)
