"""What our PyTorch operators cost, by their kernels' I/O models, for :class:`lit_eff.profiling.operators`.

Where a call takes kernels without an I/O model (those for Hopper), its bytes are inputs once, outputs once.
FLOPs are those of the result: attention's of visible pairs alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor

from lit_eff.kernels.attention.io_model import AttentionShape, backward_flops, forward_flops
from lit_eff.kernels.attention.tiles import forward_tiles, key_gradient_tiles, query_gradient_tiles
from lit_eff.kernels.attention.traffic_model import (
    PackedShapes,
    delta_traffic,
    document_ranges_traffic,
    forward_traffic,
    key_gradient_traffic,
    query_gradient_traffic,
)
from lit_eff.kernels.cross_entropy.io_model import RowShape, product_bytes, row_traffic
from lit_eff.profiling.modelled import Traffic
from lit_eff.profiling.operators import ONCE, Cost, CostModel, bytes_once

AS_ONE_CHUNK = "I/O model, all rows at once"


def operator_costs() -> dict[str, CostModel]:
    """By the operators' names."""
    return {
        "lit_eff::attention_forward": _attention_forward,
        "lit_eff::attention_backward": _attention_backward,
        "lit_eff::cross_entropy": _cross_entropy,
        "lit_eff::cross_entropy_gradients": _cross_entropy_gradients,
    }


def _attention_forward(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> Cost:
    return _attention_cost(args, out, args, backward=False)


def _attention_backward(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> Cost:
    return _attention_cost(args, out, args[4:], backward=True, lse_gradient=args[1] is not None)


class _Call(NamedTuple):
    """Shapes of a dense call's one batch, or of every packed sequence with the bytes of a border."""

    shapes: tuple[AttentionShape, ...]
    border_bytes: int | None
    capability: int


def _attention_cost(
    args: Sequence[Any], out: Any, call: Sequence[Any], *, backward: bool, lse_gradient: bool = False
) -> Cost:
    from lit_eff.kernels.attention.call import AttentionCall
    from lit_eff.kernels.attention.operator import NAMES
    from lit_eff.kernels.attention.paths import path_of

    attention = AttentionCall(**dict(zip(NAMES, call, strict=True)))
    described = _Call(_shapes(attention), _border_bytes(attention), attention.capability)
    flops = sum(map(backward_flops if backward else forward_flops, described.shapes))
    if path_of(attention, backward=backward).name == "hopper":
        return Cost(*bytes_once(args, out), flops, ONCE)
    traffic = _backward_traffic(described, lse_gradient) if backward else _forward_traffic(described)
    return Cost(
        sum(each.read_bytes for each in traffic),
        sum(each.written_bytes for each in traffic),
        flops,
        "I/O model",
    )


def _shapes(call: Any) -> tuple[AttentionShape, ...]:
    def shape(batch: int, queries: int, keys: int, **ids: Any) -> AttentionShape:
        return AttentionShape(
            batch,
            queries,
            keys,
            call.heads,
            call.k_BSKD.shape[2],
            call.head_dim,
            call.q_BTHD.element_size(),
            call.causal,
            call.window,
            sinks=call.sinks_H is not None,
            alibi=call.alibi_H is not None,
            dropout=call.dropout_p > 0,
            **ids,
        )

    if call.cu_seqlens_q is not None:
        lengths = (
            (b - a for a, b in pairwise(borders.tolist()))
            for borders in (call.cu_seqlens_q, call.cu_seqlens_k)
        )
        return tuple(shape(1, *each) for each in zip(*lengths, strict=True))
    documents = call.documents_BT
    return (
        shape(
            call.batch,
            call.queries,
            call.keys,
            starts=None if call.starts_B is None else tuple(call.starts_B.tolist()),
            id_bytes=8 if documents is None else documents.element_size(),
            documents=_ids(documents),
            key_documents=_ids(call.key_documents_BS),
        ),
    )


def _border_bytes(call: Any) -> int | None:
    return None if call.cu_seqlens_q is None else int(call.cu_seqlens_q.element_size())


def _ids(documents: Tensor | None) -> tuple[tuple[int, ...], ...] | None:
    return None if documents is None else tuple(map(tuple, documents.tolist()))


@lru_cache(maxsize=64)  # the layers of a model make the same call
def _forward_traffic(call: _Call) -> list[Traffic]:
    shape = call.shapes[0]
    tiles = forward_tiles(shape.head_dim, shape.element_bytes, call.capability)
    if call.border_bytes is not None:
        return [PackedShapes(call.shapes, call.border_bytes).forward_traffic(tiles)]
    return [*_ranges(shape, shape.queries, shape.keys, tiles.block_m), forward_traffic(shape, tiles)]


@lru_cache(maxsize=64)
def _backward_traffic(call: _Call, lse_gradient: bool) -> list[Traffic]:
    shape = call.shapes[0]
    sizes = (shape.head_dim, shape.element_bytes, call.capability)
    of_keys, of_queries = key_gradient_tiles(*sizes), query_gradient_tiles(*sizes)
    if call.border_bytes is not None:
        packed = PackedShapes(call.shapes, call.border_bytes)
        return [
            packed.delta_traffic(lse_gradient=lse_gradient),
            packed.key_gradient_traffic(of_keys),
            packed.query_gradient_traffic(of_queries),
        ]
    return [
        delta_traffic(shape, lse_gradient=lse_gradient),
        *_ranges(shape, shape.keys, shape.queries, of_keys.block_n),
        key_gradient_traffic(shape, of_keys),
        *_ranges(shape, shape.queries, shape.keys, of_queries.block_m),
        query_gradient_traffic(shape, of_queries),
    ]


def _ranges(shape: AttentionShape, own: int, other: int, block: int) -> list[Traffic]:
    return [] if shape.documents is None else [document_ranges_traffic(shape, own, other, block)]


def _cross_entropy(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> Cost:
    hiddens, matrices, biases = args[:3]
    exits = hiddens[0].shape[0] if len(hiddens) == 1 and hiddens[0].ndim == 3 else len(hiddens)
    return _cross_entropy_gradients([*args, [False] * (exits + len(matrices) + len(biases))], kwargs, out)


def _cross_entropy_gradients(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> Cost:
    """Of each exit: logits, and of what is wanted the gradients, two more products."""
    hiddens, matrices, wanted = args[0], args[1], args[-1]
    whole = len(hiddens) == 1 and hiddens[0].ndim == 3
    matrix_of, dtype = args[5], args[8]
    exits = hiddens[0].shape[0] if whole else len(hiddens)
    rows, width = hiddens[0].shape[-2:]
    read = written = flops = 0
    for index in range(exits):
        columns = matrices[matrix_of[index]].shape[0]
        to_hidden, to_matrix = wanted[index], wanted[exits + matrix_of[index]]
        flops += 2 * rows * width * columns * (1 + to_hidden + to_matrix)
        gradient = to_hidden or to_matrix
        size = dtype.itemsize
        last = index == exits - 1
        shape = RowShape(rows, rows, columns, element_bytes=size, gradient=gradient, last=last)
        made = row_traffic(shape)
        read, written = read + made.read_bytes, written + made.written_bytes
        if gradient:
            read += product_bytes(rows, width, columns, size, first=index == 0)
        else:
            read += size * (rows * width + columns * width)
            written += size * rows * columns
    return Cost(read, written, flops, AS_ONE_CHUNK)
