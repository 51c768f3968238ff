"""The public function for decoding, verifying and prefilling on a cache: checks, then the operator.

Shapes: B batch, T query length, S cache slots, P pages a row, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.kernels.attention.checks import DTYPES, MAX_GRID, head_dim_fault
from lit_eff.kernels.attention.interface import supports
from lit_eff.kernels.attention.with_cache.checks import (
    INTEGERS,
    Wanted,
    check_pages,
    check_rows,
    check_values,
    slots_of,
)
from lit_eff.kernels.attention.with_cache.reference import attention_with_cache_reference
from lit_eff.kernels.device import TRITON_INSTALLED

if TRITON_INSTALLED:
    from lit_eff.kernels.attention.operator import INTERPRETED
    from lit_eff.kernels.attention.with_cache import operator

MAX_TREE = 64  # bits in the kernel's mask of a row


def attention_with_cache(
    q_BTHD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths_B: Tensor,
    *,
    page_table_BP: Tensor | None = None,
    query_lengths_B: Tensor | None = None,
    tree_mask_BTT: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi: Tensor | None = None,
    scale: float | None = None,
    max_length: int | None = None,
    check_lengths: bool = False,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact attention of a few new tokens a row on their key/value cache, whatever is computed beside them.

    Query t of row b stands at cache slot ``lengths_B[b] + t``, where its key and value are already written,
    and sees the slots up to its own. What it yields is the same bits whatever the batch, the number of
    queries, its place among them, the neighbours, the capacity, the paging, and the garbage in slots that no
    query sees: a token decoded, verified or prefilled (in pieces of any size) gives one result. For inference
    only: there is no backward.

    On a CPU the plain reference runs instead, which promises no bits.

    Args:
        q_BTHD: queries, float16, bfloat16 or float32, any strides; H is a multiple of K. T may be anything;
            the kernels are made for 1 to 64.
        k_cache: (B, S, K, D), any strides; with ``page_table_BP`` (pages, page size, K, D). D from 16 to 256.
        v_cache: values, the shape of the keys.
        lengths_B: int32 or int64, tokens in each row's cache before the queries.
        page_table_BP: int32 or int64; slot s of row b lies in page ``page_table_BP[b, s // page size]``.
            Entries of slots that no query sees are never read.
        query_lengths_B: int32 or int64, how many of the T queries row b has; the others yield zeros and -inf.
        tree_mask_BTT: bool; query t sees the slot of query u <= t only where [b, t, u] holds; for T up to
            64, whose answers are the bits of one number a row.
        window: a query sees its own slot and the ``window - 1`` before it.
        softcap: scores become ``softcap * tanh(scores / softcap)`` (after the scale).
        sinks: (H,) logits that join the softmax's denominator and carry no value.
        alibi: (H,) slopes; ``slope * distance in slots`` is taken from the scores.
        scale: factor on the scores; 1 / sqrt(D) by default.
        max_length: no row's lengths_B + query tokens exceeds this. It sizes the grid and the workspace, which
            the capacity does otherwise; results do not depend on it.
        check_lengths: compare lengths and page table with the capacity although they lie on a GPU: waits for
            the device, so neither in a captured graph nor in a compiled region. On a CPU they always are.
            Unchecked, slots past the capacity or max_length are not read; page numbers out of range are.
        return_lse: also return the natural log-sum-exp of the scores and sinks.

    Returns:
        (B, T, H, D) in the dtype of ``q_BTHD``, contiguous; with ``return_lse`` also (B, H, T) float32. A
        query that sees nothing yields zeros and its sink's logit (-inf without sinks).

    Raises:
        UserError: naming the argument that does not fit, before anything runs.

    Source: Flash-Decoding (Dao et al. 2023): keys split over programs, partial results joined by their
    log-sum-exp, here at fixed borders and in a fixed order.
    """
    check_cache(q_BTHD, k_cache, v_cache, page_table_BP)
    rows = {
        "lengths_B": lengths_B,
        "page_table_BP": page_table_BP,
        "query_lengths_B": query_lengths_B,
        "tree_mask_BTT": tree_mask_BTT,
        "sinks": sinks,
        "alibi": alibi,
    }
    check_options(q_BTHD, rows, window, softcap, max_length)
    capacity = slots_of(k_cache.shape[1], page_table_BP)
    if query_lengths_B is None and q_BTHD.shape[1] > capacity:
        raise UserError(
            f"attention_with_cache: {q_BTHD.shape[1]} query tokens exceed the {capacity} slots of the cache"
        )
    readable = lengths_B.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable or check_lengths:
        name, queries = "attention_with_cache", q_BTHD.shape[1]
        bounds = {"slots of the cache": capacity}
        if max_length is not None:
            bounds["tokens of max_length"] = max_length
        check_values(name, queries, lengths_B, query_lengths_B, bounds)
        if page_table_BP is not None:
            pages, page_size = k_cache.shape[:2]
            check_pages(name, queries, lengths_B, query_lengths_B, page_table_BP, pages, page_size, window)
    if q_BTHD.device.type == "cpu" and not (TRITON_INSTALLED and INTERPRETED):
        return attention_with_cache_reference(
            q_BTHD, k_cache, v_cache, lengths_B,
            page_table_BP=page_table_BP, query_lengths_B=query_lengths_B, tree_mask_BTT=tree_mask_BTT,
            window=window, softcap=softcap, sinks=sinks, alibi=alibi, scale=scale, return_lse=return_lse,
        )  # fmt: skip
    support = supports(q_BTHD.device, head_dim=q_BTHD.shape[3], dtype=q_BTHD.dtype)
    if not support:
        raise UserError(f"attention_with_cache cannot run: {support.reason}")
    out_BTHD, lse_BHT = operator.attention_with_cache(
        q_BTHD,
        k_cache,
        v_cache,
        lengths_B,
        page_table_BP,
        query_lengths_B,
        tree_mask_BTT,
        sinks,
        alibi,
        1 / math.sqrt(q_BTHD.shape[3]) if scale is None else float(scale),
        window,
        softcap,
        max_length,
    )
    return (out_BTHD, lse_BHT) if return_lse else out_BTHD


def check_cache(q_BTHD: Tensor, k_cache: Tensor, v_cache: Tensor, page_table_BP: Tensor | None) -> None:
    """Shapes, dtypes and devices of the big tensors."""
    layout = "(B, S, K, D)" if page_table_BP is None else "(pages, page size, K, D)"
    if q_BTHD.ndim != 4 or k_cache.ndim != 4:
        raise UserError(
            f"attention_with_cache wants q (B, T, H, D) and a cache {layout}; got {_s(q_BTHD)} and "
            f"{_s(k_cache)}"
        )
    if k_cache.shape != v_cache.shape:
        raise UserError(
            f"attention_with_cache wants k and v caches of one shape; got {_s(k_cache)} and {_s(v_cache)}"
        )
    batch, _, heads, head_dim = q_BTHD.shape
    if page_table_BP is None and k_cache.shape[0] != batch:
        raise UserError(
            f"attention_with_cache: q {_s(q_BTHD)} and cache {_s(k_cache)} differ in batch (a paged cache "
            "needs page_table_BP)"
        )
    kv_heads = k_cache.shape[2]
    if k_cache.shape[3] != head_dim:
        raise UserError(f"attention_with_cache: q {_s(q_BTHD)} and cache {_s(k_cache)} differ in head dim")
    if kv_heads == 0 or heads == 0 or heads % kv_heads:
        raise UserError(
            f"attention_with_cache: {heads} query heads are not a multiple of {kv_heads} kv heads"
        )
    if fault := head_dim_fault(head_dim):
        raise UserError(f"attention_with_cache: {fault}")
    if q_BTHD.dtype not in DTYPES:
        raise UserError(f"attention_with_cache: dtype {q_BTHD.dtype} is not float16, bfloat16 or float32")
    if batch > MAX_GRID:
        raise UserError(f"attention_with_cache: batch {batch} may be at most {MAX_GRID}")
    if page_table_BP is not None and k_cache.shape[1] == 0:
        raise UserError(f"attention_with_cache: pages of {_s(k_cache)} hold no slot")
    for name, tensor in (("k_cache", k_cache), ("v_cache", v_cache)):
        if tensor.dtype != q_BTHD.dtype:
            raise UserError(f"attention_with_cache: {name} is {tensor.dtype}, q {q_BTHD.dtype}")
        if tensor.device != q_BTHD.device:
            raise UserError(f"attention_with_cache: {name} is on {tensor.device}, q on {q_BTHD.device}")


def check_options(
    q_BTHD: Tensor,
    rows: dict[str, Tensor | None],
    window: int | None,
    softcap: float | None,
    max_length: int | None,
) -> None:
    """Shapes, kinds and devices of what comes a row or a head, and the plain numbers."""
    if window is not None and window < 1:
        raise UserError(f"attention_with_cache: window {window} must be at least 1, or None for no window")
    if softcap is not None and not softcap > 0:
        raise UserError(f"attention_with_cache: softcap {softcap} must be positive, or None for no cap")
    if max_length is not None and max_length < 1:
        raise UserError(f"attention_with_cache: max_length {max_length} must be at least 1, or None")
    batch, queries, heads, _ = q_BTHD.shape
    if rows["tree_mask_BTT"] is not None and queries > MAX_TREE:
        raise UserError(f"attention_with_cache: a tree of {queries} query tokens; at most {MAX_TREE} fit")
    wanted: Wanted = {
        "lengths_B": ((batch,), INTEGERS),
        "page_table_BP": ((batch, None), INTEGERS),
        "query_lengths_B": ((batch,), INTEGERS),
        "tree_mask_BTT": ((batch, queries, queries), (torch.bool,)),
        "sinks": ((heads,), DTYPES),
        "alibi": ((heads,), DTYPES),
    }
    check_rows("attention_with_cache", wanted, rows, q_BTHD.device)


def _s(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
