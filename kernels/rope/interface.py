"""The public function: checks, then the operator.

Shapes: B batch, T query length, S cache slots, P pages a row, H query heads, K kv heads, D head dim,
M positions of the tables, R rotary pairs (half the rotary dim).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.kernels.attention.checks import DTYPES
from lit_eff.kernels.device import TRITON_INSTALLED
from lit_eff.kernels.linear.interface import check_beside, runs_kernels
from lit_eff.kernels.rope.checks import check_cache, check_head_dim, check_places, check_slots, check_tables
from lit_eff.kernels.rope.reference import RotaryTables, rope_cache_write_reference

if TRITON_INSTALLED:
    from lit_eff.kernels.rope import operator

NAME = "rope_cache_write"


def rope_cache_write(
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    v_BTKD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths_B: Tensor,
    *,
    tables: RotaryTables | None = None,
    page_table_BP: Tensor | None = None,
    query_lengths_B: Tensor | None = None,
    positions_BT: Tensor | None = None,
    q_norm_D: Tensor | None = None,
    k_norm_D: Tensor | None = None,
    norm_eps: float = 1e-6,
    out: Tensor | None = None,
    check_lengths: bool = False,
) -> Tensor:
    """Turn queries and keys by their positions and write keys and values to the cache, in one launch.

    Query t of row b gets slot ``lengths_B[b] + t`` of its row, where `attention_with_cache` of the same
    lengths looks for it. A token yields the same bits whatever tokens are beside it, and whether the cache is
    paged. For inference only: there is no backward.

    A query past ``query_lengths_B``, a slot past the capacity, a position outside the tables: these are no
    tokens. What they would write is left out, and their query comes back as zeros; of a token whose page
    number is none of the cache's pages only the write is left out. So nothing outside the cache is ever
    written, whatever lengths, positions and page numbers lie on a GPU unchecked.

    On a CPU the plain reference runs instead.

    Args:
        q_BTHD: queries, float16, bfloat16 or float32, any strides (a part of one fused projection, say).
        k_BTKD: keys, in the same dtype, any strides.
        v_BTKD: values, likewise.
        k_cache: (B, S, K, D), any strides; with ``page_table_BP`` (pages, page size, K, D). Written in place.
        v_cache: likewise.
        lengths_B: int32 or int64, tokens in each row's cache before these.
        tables: cosines and sines by position (:func:`rotary_tables`); pairs (i, i + R) turn, channels from
            2 R on pass. None turns nothing.
        page_table_BP: int32 or int64; slot s of row b lies in page ``page_table_BP[b, s // page size]``. No
            two tokens of a call may share a slot.
        query_lengths_B: int32 or int64, how many of the T tokens row b has.
        positions_BT: int32 or int64, what each token is turned by: its slot by default; in a tree of drafts
            its depth counts.
        q_norm_D: gain of an RMSNorm over each query head, before the rotation (Qwen 3), floating point.
        k_norm_D: likewise of each key head.
        norm_eps: added to the norms' mean squares.
        out: (B, T, H, D) in the dtype of q, any strides, for the queries; it may be ``q_BTHD`` itself.
        check_lengths: compare lengths, pages and positions with cache and tables although they lie on a GPU:
            waits for the device. On a CPU they always are.

    Returns:
        ``out``, or a new contiguous (B, T, H, D): the queries, rounded once.

    Raises:
        UserError: naming the argument that does not fit, before anything runs.

    Source: rotary positions, Su et al. 2021, in Hugging Face's order of channels.
    """
    _check(q_BTHD, k_BTKD, v_BTKD, k_cache, v_cache, page_table_BP, out)
    (batch, queries, _, head_dim), device = q_BTHD.shape, q_BTHD.device
    check_tables(NAME, tables, head_dim, device)
    check_slots(NAME, batch, queries, device, lengths_B, page_table_BP, query_lengths_B, positions_BT)
    for what, gain_D in (("q_norm_D", q_norm_D), ("k_norm_D", k_norm_D)):
        if gain_D is not None:
            check_beside(NAME, what, gain_D, (head_dim,), q_BTHD)
    if not norm_eps >= 0:
        raise UserError(f"{NAME}: norm_eps {norm_eps} must be at least 0")
    if check_lengths or (lengths_B.device.type == "cpu" and not torch.compiler.is_compiling()):
        places = (lengths_B, page_table_BP, query_lengths_B, positions_BT)
        check_places(NAME, queries, k_cache.shape[0], k_cache.shape[1], tables, *places)
    if not runs_kernels(NAME, q_BTHD):
        turned_BTHD = rope_cache_write_reference(
            q_BTHD, k_BTKD, v_BTKD, k_cache, v_cache, lengths_B,
            tables=tables, page_table_BP=page_table_BP, query_lengths_B=query_lengths_B,
            positions_BT=positions_BT, q_norm_D=q_norm_D, k_norm_D=k_norm_D, norm_eps=norm_eps,
        )  # fmt: skip
        return turned_BTHD if out is None else out.copy_(turned_BTHD)
    if out is None:
        out = torch.empty(q_BTHD.shape, dtype=q_BTHD.dtype, device=device)
    operator.rope_cache_write(
        q_BTHD,
        k_BTKD,
        v_BTKD,
        out,
        k_cache,
        v_cache,
        lengths_B.contiguous(),
        *((None, None) if tables is None else tables),
        page_table_BP,
        None if query_lengths_B is None else query_lengths_B.contiguous(),
        positions_BT,
        None if q_norm_D is None else q_norm_D.contiguous(),
        None if k_norm_D is None else k_norm_D.contiguous(),
        float(norm_eps),
    )
    return out


def _check(
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    v_BTKD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table_BP: Tensor | None,
    out: Tensor | None,
) -> None:
    """Shapes, dtypes and devices of the big tensors."""
    if not q_BTHD.ndim == k_BTKD.ndim == 4 or k_BTKD.shape != v_BTKD.shape:
        raise UserError(
            f"{NAME} wants q (B, T, H, D), k and v (B, T, K, D); got {_s(q_BTHD)}, {_s(k_BTKD)} and "
            f"{_s(v_BTKD)}"
        )
    batch, queries, heads, head_dim = q_BTHD.shape
    kv_heads = k_BTKD.shape[2]
    if k_BTKD.shape != (batch, queries, kv_heads, head_dim) or heads == 0 or kv_heads == 0:
        raise UserError(f"{NAME}: q {_s(q_BTHD)} and k {_s(k_BTKD)} differ in more than their heads")
    check_head_dim(NAME, head_dim)
    if q_BTHD.dtype not in DTYPES:
        raise UserError(f"{NAME}: dtype {q_BTHD.dtype} is not float16, bfloat16 or float32")
    check_cache(NAME, k_cache, v_cache, batch, kv_heads, head_dim, page_table_BP)
    if out is not None and out.shape != q_BTHD.shape:
        raise UserError(f"{NAME}: out {_s(out)} must have the shape of q {_s(q_BTHD)}")
    others = {"k": k_BTKD, "v": v_BTKD, "k_cache": k_cache, "v_cache": v_cache, "out": out}
    for name, tensor in others.items():
        if tensor is None:
            continue
        if tensor.dtype != q_BTHD.dtype:
            raise UserError(f"{NAME}: {name} is {tensor.dtype}, q {q_BTHD.dtype}")
        if tensor.device != q_BTHD.device:
            raise UserError(f"{NAME}: {name} is on {tensor.device}, q on {q_BTHD.device}")


def _s(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
