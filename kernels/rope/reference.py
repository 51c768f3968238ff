"""Rotation and cache write in plain PyTorch: the definition that the kernels are tested against.

Shapes: B batch, T query length, S cache slots, P pages a row, H query heads, K kv heads, D head dim,
M positions of the tables, R rotary pairs (half the rotary dim).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_eff.kernels.attention.with_cache.checks import slots_of


class RotaryTables(NamedTuple):
    """Cosine and sine of every position's angles, float32 (M, R)."""

    cos_MR: Tensor
    sin_MR: Tensor


def rotary_tables(inverse_frequencies_R: Tensor, positions: int) -> RotaryTables:
    """Tables of positions 0 to ``positions - 1``, on the device of the frequencies.

    Angles are products in float32, as models compute them (Su et al. 2021); whatever scaling there is has its
    place in the frequencies, radians a position.
    """
    frequencies_R = inverse_frequencies_R.float()
    angles_MR = torch.arange(positions, device=frequencies_R.device).float()[:, None] * frequencies_R
    return RotaryTables(angles_MR.cos(), angles_MR.sin())


def rotated(x_BTHD: Tensor, cos_BTR: Tensor, sin_BTR: Tensor) -> Tensor:
    """Pairs (i, i + R) turned by their angles; channels from 2 R on pass. In the dtype of ``x_BTHD``."""
    pairs = cos_BTR.shape[-1]
    cos, sin = cos_BTR[:, :, None].to(x_BTHD.dtype), sin_BTR[:, :, None].to(x_BTHD.dtype)
    first, second = x_BTHD[..., :pairs], x_BTHD[..., pairs : 2 * pairs]
    turned = [first * cos - second * sin, second * cos + first * sin, x_BTHD[..., 2 * pairs :]]
    return torch.cat(turned, dim=-1)


def token_places(
    queries: int,
    capacity: int,
    lengths_B: Tensor,
    query_lengths_B: Tensor | None,
    positions_BT: Tensor | None,
    table_rows: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Slot and position of each of T queries a row, and whether it is a token at all; (B, T) each."""
    t_T = torch.arange(queries, device=lengths_B.device)
    slot_BT = lengths_B.to(torch.int64)[:, None] + t_T
    token_BT = (lengths_B >= 0)[:, None] & (slot_BT < capacity)
    if query_lengths_B is not None:
        token_BT = token_BT & (t_T < query_lengths_B[:, None])
    position_BT = slot_BT if positions_BT is None else positions_BT.to(torch.int64)
    if table_rows is not None:
        token_BT = token_BT & (position_BT >= 0) & (position_BT < table_rows)
    return slot_BT, position_BT, token_BT


def write_slots(
    cache: Tensor, new_BTKD: Tensor, slot_BT: Tensor, token_BT: Tensor, page_table_BP: Tensor | None
) -> None:
    """Store the tokens' heads in their slots, in place; what has no page in the cache is left out."""
    batch, queries = slot_BT.shape
    row_BT = torch.arange(batch, device=slot_BT.device)[:, None].expand(-1, queries)
    if page_table_BP is None:
        block_BT, place_BT = row_BT, slot_BT
    else:
        size = cache.shape[1]
        index_BT = (slot_BT // size).clamp(0, page_table_BP.shape[1] - 1)
        block_BT, place_BT = page_table_BP.to(torch.int64).gather(1, index_BT), slot_BT % size
        token_BT = token_BT & (block_BT >= 0) & (block_BT < cache.shape[0])
    cache.index_put_((block_BT[token_BT], place_BT[token_BT]), new_BTKD[token_BT].to(cache.dtype))


def prepared(
    x_BTHD: Tensor,
    gain_D: Tensor | None,
    norm_eps: float,
    tables: RotaryTables | None,
    position_BT: Tensor,
    accumulate: torch.dtype,
) -> Tensor:
    """Heads normalised and turned in ``accumulate``, rounded to their own dtype."""
    wide = x_BTHD.to(accumulate)
    if gain_D is not None:
        wide = F.rms_norm(wide, wide.shape[-1:], gain_D.to(accumulate), norm_eps)
    if tables is not None:
        wide = rotated(wide, tables.cos_MR[position_BT], tables.sin_MR[position_BT])
    return wide.to(x_BTHD.dtype)


def rope_cache_write_reference(
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
    accumulate: torch.dtype = torch.float32,
) -> Tensor:
    """Norm and rotation in ``accumulate``, then the write; returns q, contiguous.

    Arguments as in :func:`lit_eff.kernels.rope.rope_cache_write`.
    """
    slot_BT, position_BT, token_BT = token_places(
        q_BTHD.shape[1],
        slots_of(k_cache.shape[1], page_table_BP),
        lengths_B,
        query_lengths_B,
        positions_BT,
        None if tables is None else tables.cos_MR.shape[0],
    )

    turns = (norm_eps, tables, torch.where(token_BT, position_BT, 0), accumulate)
    k_BTKD = prepared(k_BTKD, k_norm_D, *turns)
    write_slots(k_cache, k_BTKD, slot_BT, token_BT, page_table_BP)
    write_slots(v_cache, v_BTKD, slot_BT, token_BT, page_table_BP)
    q_BTHD = prepared(q_BTHD, q_norm_D, *turns)
    return torch.where(token_BT[:, :, None, None], q_BTHD, 0).contiguous()
