"""What whoever writes tokens to a cache refuses, before anything is launched and in one line each.

Shapes: B batch, T query length, S cache slots, P pages a row, K kv heads, D head dim, M positions of the
tables, R rotary pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.kernels.attention.checks import head_dim_fault
from lit_eff.kernels.attention.with_cache.checks import (
    INTEGERS,
    check_pages,
    check_rows,
    check_values,
    slots_of,
)
from lit_eff.kernels.rope.reference import RotaryTables


def check_head_dim(name: str, head_dim: int) -> None:
    fault = head_dim_fault(head_dim) or (f"head dim {head_dim} is odd" if head_dim % 2 else None)
    if fault:
        raise UserError(f"{name}: {fault}")


def check_tables(name: str, tables: RotaryTables | None, head_dim: int, device: torch.device) -> None:
    """Both (M, R), contiguous float32, with R up to half the head dim."""
    if tables is None:
        return
    cos_MR, sin_MR = tables
    for what, table in (("cos_MR", cos_MR), ("sin_MR", sin_MR)):
        if table.ndim != 2 or table.shape != cos_MR.shape or table.dtype != torch.float32:
            raise UserError(
                f"{name}: tables must be float32 of one shape (positions, pairs); {what} is {table.dtype} "
                f"{tuple(table.shape)}"
            )
        if not table.is_contiguous():
            raise UserError(f"{name}: {what} of strides {table.stride()} must be contiguous")
        if table.device != device:
            raise UserError(f"{name}: {what} is on {table.device}, the tokens on {device}")
    pairs = cos_MR.shape[1]
    if not 0 < 2 * pairs <= head_dim:
        raise UserError(f"{name}: tables turn {2 * pairs} channels; expected 2 to the head dim {head_dim}")


def check_slots(
    name: str,
    batch: int,
    queries: int,
    device: torch.device,
    lengths_B: Tensor,
    page_table_BP: Tensor | None,
    query_lengths_B: Tensor | None,
    positions_BT: Tensor | None,
) -> None:
    """Shapes, kinds and devices of what says where tokens go."""
    rows = {
        "lengths_B": lengths_B,
        "page_table_BP": page_table_BP,
        "query_lengths_B": query_lengths_B,
        "positions_BT": positions_BT,
    }
    wanted = {
        "lengths_B": ((batch,), INTEGERS),
        "page_table_BP": ((batch, None), INTEGERS),
        "query_lengths_B": ((batch,), INTEGERS),
        "positions_BT": ((batch, queries), INTEGERS),
    }
    check_rows(name, wanted, rows, device)


def check_places(
    name: str,
    queries: int,
    blocks: int,
    block_size: int,
    tables: RotaryTables | None,
    lengths_B: Tensor,
    page_table_BP: Tensor | None,
    query_lengths_B: Tensor | None,
    positions_BT: Tensor | None,
) -> None:
    """Every token has a slot, a page and a position. Reads all of them on the host.

    ``blocks`` and ``block_size`` are the cache's dimensions: rows and slots, or pages and the page size.
    """
    bounds = {"slots of the cache": slots_of(block_size, page_table_BP)}
    if tables is not None and positions_BT is None:
        bounds["positions of the rotary tables"] = tables.cos_MR.shape[0]
    check_values(name, queries, lengths_B, query_lengths_B, bounds)
    if page_table_BP is not None:
        check_pages(name, queries, lengths_B, query_lengths_B, page_table_BP, blocks, block_size, window=1)
    if tables is None or positions_BT is None:
        return
    t_T = torch.arange(queries, device=positions_BT.device)
    count_B1 = queries if query_lengths_B is None else query_lengths_B[:, None]
    positions = tables.cos_MR.shape[0]
    wrong_BT = ((positions_BT < 0) | (positions_BT >= positions)) & (t_T < count_B1)
    if wrong_BT.any():
        row, place = wrong_BT.nonzero()[0].tolist()
        raise UserError(
            f"{name}: positions_BT[{row}, {place}] is {int(positions_BT[row, place])}, "
            f"not one of the {positions} positions of the rotary tables"
        )


def check_cache(
    name: str,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: int,
    kv_heads: int,
    head_dim: int,
    page_table_BP: Tensor | None,
) -> None:
    """Shapes of both caches of a layer."""
    layout = f"({batch}, S, {kv_heads}, {head_dim})"
    if page_table_BP is not None:
        layout = f"(pages, page size, {kv_heads}, {head_dim})"
    fits = k_cache.ndim == 4 and k_cache.shape[2:] == (kv_heads, head_dim)
    if not fits or (page_table_BP is None and k_cache.shape[0] != batch):
        raise UserError(f"{name} wants a cache {layout}; got {tuple(k_cache.shape)}")
    if k_cache.shape != v_cache.shape:
        raise UserError(
            f"{name} wants k and v caches of one shape; got {tuple(k_cache.shape)} and {tuple(v_cache.shape)}"
        )
    if page_table_BP is not None and k_cache.shape[1] == 0:
        raise UserError(f"{name}: pages of {tuple(k_cache.shape)} hold no slot")
