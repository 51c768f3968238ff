"""The launches of attention's portable kernels, forward and backward, each with its modelled bytes.

Shapes: B batch, T query length, S key length, N packed queries, M packed keys, H query heads, K kv heads,
D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_eff.kernels.attention.backward import backward_launches
from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.kernels.attention.forward import forward_launches
from lit_eff.kernels.attention.io_model import AttentionShape, forward_flops
from lit_eff.kernels.attention.sectors import (
    Rows,
    delta_sectors,
    document_ranges_sectors,
    forward_sectors,
    key_gradient_sectors,
    query_gradient_sectors,
)
from lit_eff.kernels.attention.tiles import forward_tiles, key_gradient_tiles, query_gradient_tiles
from lit_eff.kernels.attention.traffic_model import (
    PackedShapes,
    delta_traffic,
    document_ranges_traffic,
    forward_traffic,
    key_gradient_traffic,
    query_gradient_traffic,
)
from lit_eff.kernels.catalogue import Operation
from lit_eff.profiling.launch import Launch
from lit_eff.profiling.modelled import ModelledLaunch, Traffic

TILES = (forward_tiles, key_gradient_tiles, query_gradient_tiles)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What dense and packed calls have in common.

    ``lse_gradient``: the backward also gets a gradient of the log-sum-exp.
    """

    causal: bool = False
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    alibi: bool = False
    dropout: float = 0.0
    backward: bool = True
    lse_gradient: bool = False
    dtype: str = "float32"

    @property
    def element(self) -> torch.dtype:
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class AttentionCase(Options):
    """A dense call; ``documents`` is how many a row holds, ``starts`` whether first slots are drawn."""

    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    documents: int = 0
    starts: bool = False


@dataclass(frozen=True)
class PackedCase(Options):
    """Packed sequences of (queries, keys)."""

    lengths: Sequence[Sequence[int]]
    heads: int
    kv_heads: int
    head_dim: int


class Model(NamedTuple):
    """What the I/O model says of one launch."""

    traffic: Traffic
    sectors: int
    flops: int = 0


def with_models(launches: Sequence[Launch], models: Sequence[Model]) -> list[ModelledLaunch]:
    return [
        ModelledLaunch(launch, replace(model.traffic, sectors=model.sectors), model.flops)
        for launch, model in zip(launches, models, strict=True)
    ]


def dense_call(
    case: AttentionCase, device: torch.device, capability: int
) -> tuple[AttentionCall, AttentionShape]:
    """The call of a case on new tensors, and its shape with the ids and starts that were drawn."""
    sizes = [(case.queries, case.heads)] + 2 * [(case.keys, case.kv_heads)]
    tensors = [
        torch.randn(case.batch, *size, case.head_dim, dtype=case.element, device=device) for size in sizes
    ]
    # Small, and the model needs them: drawn on the CPU whatever the device.
    ids = [torch.randint(0, max(case.documents, 1), (case.batch, rows)) for rows in (case.queries, case.keys)]
    documents_BT, key_documents_BS = (each.sort(dim=1).values if case.documents else None for each in ids)
    starts_B = torch.randint(0, max(case.keys - case.queries, 0) + 1, (case.batch,)) if case.starts else None
    case = replace(case, causal=case.causal or case.starts)
    call = _call(
        case,
        tensors,
        capability,
        documents_BT=_on(device, documents_BT),
        key_documents_BS=_on(device, key_documents_BS),
        starts_B=_on(device, starts_B),
    )
    shape = _shape(
        case,
        case.batch,
        case.queries,
        case.keys,
        starts=None if starts_B is None else tuple(starts_B.tolist()),
        documents=_ids(documents_BT),
        key_documents=_ids(key_documents_BS),
    )
    return call, shape


def _on(device: torch.device, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def _ids(documents: Tensor | None) -> tuple[tuple[int, ...], ...] | None:
    return None if documents is None else tuple(map(tuple, documents.tolist()))


def _call(
    case: AttentionCase | PackedCase, tensors: Sequence[Tensor], capability: int, **rows: Any
) -> AttentionCall:
    q_BTHD, k_BSKD, v_BSKD = tensors
    device = q_BTHD.device
    return AttentionCall(
        q_BTHD,
        k_BSKD,
        v_BSKD,
        scale=case.head_dim**-0.5,
        causal=case.causal,
        window=case.window,
        softcap=case.softcap,
        target=capability,
        sinks_H=torch.rand(case.heads, device=device) if case.sinks else None,
        alibi_H=torch.rand(case.heads, device=device) if case.alibi else None,
        dropout_p=case.dropout,
        seed=torch.ones(1, dtype=torch.int64, device=device) if case.dropout else None,
        **rows,
    )


def _shape(
    case: AttentionCase | PackedCase, batch: int, queries: int, keys: int, **drawn: Any
) -> AttentionShape:
    return AttentionShape(
        batch,
        queries,
        keys,
        case.heads,
        case.kv_heads,
        case.head_dim,
        case.element.itemsize,
        case.causal,
        case.window,
        sinks=case.sinks,
        alibi=case.alibi,
        dropout=case.dropout > 0,
        **drawn,
    )


def launches(case: AttentionCase, device: torch.device, capability: int) -> list[ModelledLaunch]:
    """Forward, then row sums, dK and dV, dQ; before each that needs it, where the documents lie."""
    call, shape = dense_call(case, device, capability)
    tiles = [get(shape.head_dim, shape.element_bytes, capability) for get in TILES]
    of_forward, of_keys, of_queries = tiles
    traffic = (
        forward_traffic(shape, of_forward),
        delta_traffic(shape, lse_gradient=case.lse_gradient),
        key_gradient_traffic(shape, of_keys),
        query_gradient_traffic(shape, of_queries),
    )

    def ranges(own: int, other: int, block: int) -> list[Model]:
        if shape.documents is None:
            return []
        return [Model(document_ranges_traffic(shape, own, other, block), document_ranges_sectors(shape))]

    forward, delta, keys, queries = _models(case, [shape], Rows.of_batch(shape), tiles, traffic)
    models = [*ranges(case.queries, case.keys, of_forward.block_m), forward]
    if case.backward:
        models += [delta, *ranges(case.keys, case.queries, of_keys.block_n), keys]
        models += [*ranges(case.queries, case.keys, of_queries.block_m), queries]
    return with_models(_all_launches(case, call), models)


def packed_launches(case: PackedCase, device: torch.device, capability: int) -> list[ModelledLaunch]:
    """Forward, then row sums, dK and dV, dQ."""
    queries, keys = ([int(pair[side]) for pair in case.lengths] for side in (0, 1))
    cu_q, cu_k = (torch.tensor([0, *each]).cumsum(0).int() for each in (queries, keys))
    sizes = [(sum(queries), case.heads)] + 2 * [(sum(keys), case.kv_heads)]
    tensors = [torch.randn(1, *size, case.head_dim, dtype=case.element, device=device) for size in sizes]
    call = _call(
        case,
        tensors,
        capability,
        documents_BT=None,
        key_documents_BS=None,
        starts_B=None,
        cu_seqlens_q=cu_q.to(device),
        cu_seqlens_k=cu_k.to(device),
        max_seqlen_q=max(queries),
        max_seqlen_k=max(keys),
    )
    shapes = [_shape(case, 1, *length) for length in zip(queries, keys, strict=True)]
    packed = PackedShapes(shapes, cu_q.element_size())
    tiles = [get(case.head_dim, case.element.itemsize, capability) for get in TILES]
    of_forward, of_keys, of_queries = tiles
    traffic = (
        packed.forward_traffic(of_forward),
        packed.delta_traffic(lse_gradient=case.lse_gradient),
        packed.key_gradient_traffic(of_keys),
        packed.query_gradient_traffic(of_queries),
    )
    models = _models(case, shapes, Rows.of_packed(packed), tiles, traffic)
    return with_models(_all_launches(case, call), models if case.backward else models[:1])


def _all_launches(case: Options, call: AttentionCall) -> list[Launch]:
    """On new outputs and gradients."""
    out_BTHD, dout_BTHD = torch.empty_like(call.q_BTHD), torch.randn_like(call.q_BTHD)
    shape = (call.q_BTHD.shape[0], call.heads, call.q_BTHD.shape[1])
    lse_BHT, dlse_BHT, delta_BHT = (torch.zeros(shape, device=call.q_BTHD.device) for _ in range(3))
    launches = forward_launches(call, out_BTHD, lse_BHT)
    if case.backward:
        dlse = dlse_BHT if case.lse_gradient else None
        gradients = (torch.empty_like(each) for each in (call.q_BTHD, call.k_BSKD, call.v_BSKD))
        launches += backward_launches(call, out_BTHD, lse_BHT, dout_BTHD, dlse, delta_BHT, *gradients)
    return launches


def _models(
    case: Options,
    shapes: Sequence[AttentionShape],
    rows: Rows,
    tiles: Sequence[Any],
    traffic: Sequence[Traffic],
) -> list[Model]:
    """Of forward, row sums, dK with dV, and dQ, from their ``traffic``.

    The backward's three kernels form seven products where five would do: each forms S and dP for itself.
    """
    product = sum(map(forward_flops, shapes)) // 2
    row_sums = 2 * rows.queries * rows.shape.heads * rows.shape.head_dim
    sectors = (
        forward_sectors(rows, tiles[0]),
        delta_sectors(rows, lse_gradient=case.lse_gradient),
        key_gradient_sectors(rows, tiles[1]),
        query_gradient_sectors(rows, tiles[2]),
    )
    flops = (2 * product, row_sums, 4 * product, 3 * product)
    return [Model(*each) for each in zip(traffic, sectors, flops, strict=True)]


def _draw_options(random: Random) -> dict[str, Any]:
    return {
        "causal": random.random() < 0.5,
        "window": random.choice((None, None, random.randint(1, 80))),
        "sinks": random.random() < 0.3,
        "alibi": random.random() < 0.3,
        "dropout": random.choice((0.0, 0.0, 0.5)),
        "lse_gradient": random.random() < 0.3,
        "dtype": random.choice(("float16", "float32")),
    }


def draw(random: Random) -> AttentionCase:
    kv_heads = random.randint(1, 2)
    options = _draw_options(random)
    return AttentionCase(
        random.randint(1, 2),
        random.randint(1, 120),
        random.randint(1, 120),
        kv_heads * random.randint(1, 2),
        kv_heads,
        random.choice((16, 24, 32, 48)),
        softcap=random.choice((None, None, 2.0)),
        documents=random.choice((0, 0, random.randint(1, 4))),
        starts=random.random() < 0.2,
        **options,
    )


def draw_packed(random: Random) -> PackedCase:
    kv_heads = random.randint(1, 2)
    lengths = [(random.randint(0, 70), random.randint(0, 70)) for _ in range(random.randint(1, 3))]
    return PackedCase(
        (*lengths, (random.randint(1, 70), random.randint(1, 70))),
        kv_heads * random.randint(1, 2),
        kv_heads,
        random.choice((16, 24, 32)),
        **_draw_options(random),
    )


OPERATIONS = (
    Operation(
        name="attention",
        case=AttentionCase,
        small=(
            AttentionCase(1, 1, 1, 1, 1, 16, causal=True),
            AttentionCase(1, 65, 33, 1, 1, 16, dtype="float16"),
            AttentionCase(1, 40, 70, 4, 2, 48, causal=True),
            AttentionCase(1, 100, 40, 2, 1, 24, causal=True),  # the first 60 queries see nothing
            AttentionCase(1, 200, 200, 2, 2, 32, causal=True, window=50, dtype="float16"),
            AttentionCase(1, 70, 90, 2, 1, 16, window=20, sinks=True, alibi=True, lse_gradient=True),
            AttentionCase(1, 70, 40, 2, 1, 16, causal=True, dropout=0.5, alibi=True),
            AttentionCase(1, 60, 60, 2, 2, 64, softcap=1.0, dtype="float16"),
            AttentionCase(2, 70, 40, 2, 1, 32, causal=True, documents=3),
            AttentionCase(1, 100, 80, 1, 1, 16, documents=1),
            AttentionCase(2, 80, 80, 1, 1, 16, causal=True, window=50, documents=2, lse_gradient=True),
            AttentionCase(2, 3, 100, 2, 1, 80, starts=True),
            AttentionCase(2, 20, 70, 1, 1, 128, starts=True, window=33),
        ),
        typical=AttentionCase(4, 4096, 4096, 16, 16, 64, causal=True, dtype="bfloat16"),
        draw=draw,
        launches=launches,
    ),
    Operation(
        name="attention_packed",
        case=PackedCase,
        small=(
            PackedCase(((1, 1),), 1, 1, 16),
            PackedCase(((30, 30), (50, 50)), 2, 1, 16, causal=True),
            PackedCase(((30, 30), (70, 70)), 2, 1, 16, causal=True, dtype="float16"),
            PackedCase(((40, 40), (0, 30), (33, 50)), 2, 1, 24, causal=True, alibi=True, dropout=0.1),
            PackedCase(((20, 0), (1, 1), (65, 10)), 1, 1, 16, sinks=True),
            PackedCase(((20, 40), (65, 10)), 1, 1, 16, window=9, lse_gradient=True),
            PackedCase(((100, 100), (3, 3)), 4, 2, 16, causal=True, window=30, dtype="float16"),
            PackedCase(((9, 40), (33, 17)), 2, 1, 80, dropout=0.5),
            PackedCase(((5, 9), (9, 5), (1, 130)), 1, 1, 32, causal=True, sinks=True, alibi=True),
            PackedCase(((0, 3), (3, 3)), 1, 1, 64, softcap=2.0),
            PackedCase(((129, 129),), 1, 1, 16, causal=True, backward=False),
            PackedCase(((40, 40), (40, 40), (40, 40)), 2, 2, 48, dtype="float16"),
        ),
        typical=PackedCase(
            ((1024, 1024), (4096, 4096), (3072, 3072)), 16, 4, 64, causal=True, dtype="bfloat16"
        ),
        draw=draw_packed,
        launches=packed_launches,
    ),
)
