"""The public function: checks, then the operator.

Shapes: L skipped layers, B batch, T query length, S cache slots, P pages a row, C model dim, K kv heads,
D head dim, O = 2 K D rows of a layer's weight, M positions of the tables, R rotary pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.kernels.device import TRITON_INSTALLED
from lit_eff.kernels.linear.interface import check_beside, check_product, runs_products
from lit_eff.kernels.linear.reference import Norm
from lit_eff.kernels.propagate.reference import propagate_reference
from lit_eff.kernels.rope.checks import (
    check_cache,
    check_head_dim,
    check_places,
    check_slots,
    check_tables,
)
from lit_eff.kernels.rope.reference import RotaryTables

if TRITON_INSTALLED:
    from lit_eff.kernels.linear.operator import flat_norm
    from lit_eff.kernels.propagate import operator

NAME = "propagate"


def propagate(
    hidden_BTC: Tensor,
    weight_LOC: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths_B: Tensor,
    *,
    norm: Norm | None = None,
    bias_LO: Tensor | None = None,
    tables: RotaryTables | None = None,
    page_table_BP: Tensor | None = None,
    query_lengths_B: Tensor | None = None,
    positions_BT: Tensor | None = None,
    k_norm_LD: Tensor | None = None,
    k_norm_eps: float = 1e-6,
    check_lengths: bool = False,
) -> None:
    """Write the keys and values of the layers that tokens skip, from the hidden state that they left with.

    Each skipped layer gets ``rotate(W_k norm(h))`` and ``W_v norm(h)`` in its own cache, all layers in one
    launch (and a short second one where keys have a norm). Slots, positions, and what is no token: as in
    `rope_cache_write`. So ``query_lengths_B`` says how many of a row's T tokens left; of rows that stay it is
    0, and where no token of a row tile left, no weight is read. (Exits may be decided on the device, before a
    captured launch.)

    Keys and values are the bits of `skinny_linear` on one layer's weight, with its fused norm, and
    `rope_cache_write` after it: whatever tokens and layers share the launch. For inference only: there is no
    backward. On a CPU the plain reference runs instead, which promises no bits.

    Args:
        hidden_BTC: hidden states at the exit, float16, bfloat16 or float32, any strides.
        weight_LOC: in the same dtype, any strides: the rows of W_k, head by head, then those of W_v; the end
            of a stack of fused q, k and v weights, say.
        k_cache: (L, B, S, K, D) in the same dtype, any strides; with ``page_table_BP`` (L, pages, page size,
            K, D). Written in place.
        v_cache: likewise.
        lengths_B: int32 or int64, tokens in each row's cache before these.
        norm: each layer's input norm; ``weight_C`` and ``bias_C`` are stacks (L, C).
        bias_LO: floating point, added to the products.
        tables: cosines and sines by position (`rotary_tables`); None turns nothing.
        page_table_BP: int32 or int64, one for all layers.
        query_lengths_B: int32 or int64, how many of the T tokens row b has.
        positions_BT: int32 or int64, what each token is turned by; its slot by default.
        k_norm_LD: gains of an RMSNorm over each key head, before the rotation (Qwen 3).
        k_norm_eps: added to that norm's mean squares.
        check_lengths: compare lengths, pages and positions with caches and tables although they lie on a GPU:
            waits for the device. On a CPU they always are.

    Raises:
        UserError: naming the argument that does not fit, before anything runs.

    Source: CALM, Schuster et al. 2022, section 3: skipped layers take the exit's hidden state.
    """
    if hidden_BTC.ndim != 3 or weight_LOC.ndim != 3:
        raise UserError(
            f"{NAME} wants hidden states (B, T, C) and weights (L, 2 K D, C); got {_s(hidden_BTC)} and "
            f"{_s(weight_LOC)}"
        )
    (batch, queries, channels), layers = hidden_BTC.shape, weight_LOC.shape[0]
    hidden_NC, device = hidden_BTC.reshape(-1, channels), hidden_BTC.device
    if layers == 0:
        raise UserError(f"{NAME}: weights {_s(weight_LOC)} are of no layer")
    outputs = check_product(NAME, hidden_NC, weight_LOC[0], None, None)
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if cache.ndim != 5 or cache.shape[0] != layers or 2 * cache.shape[3] * cache.shape[4] != outputs:
            raise UserError(
                f"{NAME}: {name} {_s(cache)} does not fit weights {_s(weight_LOC)}; expected "
                f"({layers}, rows or pages, slots, K, D) with 2 K D = {outputs}"
            )
        if cache.dtype != hidden_BTC.dtype:
            raise UserError(f"{NAME}: {name} is {cache.dtype}, the hidden states {hidden_BTC.dtype}")
        if cache.device != device:
            raise UserError(f"{NAME}: {name} is on {cache.device}, the hidden states on {device}")
    kv_heads, head_dim = k_cache.shape[3:]
    check_head_dim(NAME, head_dim)
    check_cache(NAME, k_cache[0], v_cache[0], batch, kv_heads, head_dim, page_table_BP)
    _check_vectors(hidden_NC, layers, outputs, head_dim, norm, bias_LO, k_norm_LD, k_norm_eps)
    check_tables(NAME, tables, head_dim, device)
    check_slots(NAME, batch, queries, device, lengths_B, page_table_BP, query_lengths_B, positions_BT)
    if check_lengths or (lengths_B.device.type == "cpu" and not torch.compiler.is_compiling()):
        places = (lengths_B, page_table_BP, query_lengths_B, positions_BT)
        check_places(NAME, queries, k_cache.shape[1], k_cache.shape[2], tables, *places)
    if not runs_products(NAME, hidden_NC):
        propagate_reference(
            hidden_BTC, weight_LOC, k_cache, v_cache, lengths_B,
            norm=norm, bias_LO=bias_LO, tables=tables, page_table_BP=page_table_BP,
            query_lengths_B=query_lengths_B, positions_BT=positions_BT, k_norm_LD=k_norm_LD,
            k_norm_eps=k_norm_eps,
        )  # fmt: skip
        return
    if norm is not None:
        norm = Norm(_packed(norm.weight_C), _packed(norm.bias_C), norm.eps, norm.centered)
    operator.propagate(
        hidden_NC,
        weight_LOC,
        k_cache,
        v_cache,
        lengths_B.contiguous(),
        *flat_norm(norm),
        _packed(bias_LO),
        *((None, None) if tables is None else tables),
        page_table_BP,
        _packed(query_lengths_B),
        positions_BT,
        _packed(k_norm_LD),
        float(k_norm_eps),
    )


def _check_vectors(
    hidden_NC: Tensor,
    layers: int,
    outputs: int,
    head_dim: int,
    norm: Norm | None,
    bias_LO: Tensor | None,
    k_norm_LD: Tensor | None,
    k_norm_eps: float,
) -> None:
    """What comes a layer."""
    channels = hidden_NC.shape[1]
    wanted = {"bias_LO": (bias_LO, outputs), "k_norm_LD": (k_norm_LD, head_dim)}
    if norm is not None:
        wanted |= {"norm.weight_C": (norm.weight_C, channels), "norm.bias_C": (norm.bias_C, channels)}
        if not norm.eps >= 0:
            raise UserError(f"{NAME}: norm.eps {norm.eps} must be at least 0")
    for what, (tensor, size) in wanted.items():
        if tensor is not None:
            check_beside(NAME, what, tensor, (layers, size), hidden_NC)
    if not k_norm_eps >= 0:
        raise UserError(f"{NAME}: k_norm_eps {k_norm_eps} must be at least 0")


def _packed(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _s(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
