"""Where a token's key and value go in a cache, contiguous or paged, as device functions.

Everything works on one token (scalars) and on tiles of tokens alike.

Shapes: B batch, T query length, S cache slots, P pages a row.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def find_tokens(slots, angles, o_b, o_t, m_token):
    """Slot and position (int64) of query ``o_t`` of row ``o_b``, and whether that is a token at all.

    It is none if the row has fewer queries, its slot is outside the cache or its position outside the tables
    of angles. The position is the slot, unless positions are given.
    """
    b_length = tl.load(slots.lengths + o_b, mask=m_token, other=0).to(tl.int64)
    b_slot = b_length + o_t
    m_token = m_token & (b_length >= 0) & (b_slot < slots.capacity)
    if slots.query_lengths is not None:
        m_token = m_token & (o_t < tl.load(slots.query_lengths + o_b, mask=m_token, other=0))
    b_position = b_slot
    if slots.positions is not None:
        o_position = o_b.to(tl.int64) * slots.stride_b + o_t.to(tl.int64) * slots.stride_t
        b_position = tl.load(slots.positions + o_position, mask=m_token, other=0).to(tl.int64)
    if angles.cos is not None:
        m_token = m_token & (b_position >= 0) & (b_position < angles.rows)
    return b_slot, b_position, m_token


@triton.jit
def find_slots(slots, o_b, b_slot, m_token, PAGE_SIZE: tl.constexpr):
    """Index of a slot in the cache's first two dimensions (int64), and whether there is one: a token whose
    page number is none of the cache's pages has no place. ``PAGE_SIZE`` 0 is a contiguous cache.
    """
    if PAGE_SIZE == 0:
        b_block = o_b.to(tl.int64)
    else:
        o_page = o_b.to(tl.int64) * slots.stride_row + b_slot // PAGE_SIZE * slots.stride_page
        b_block = tl.load(slots.page_table + o_page, mask=m_token, other=0).to(tl.int64)
        m_token = m_token & (b_block >= 0) & (b_block < slots.pages)
        b_slot = b_slot % PAGE_SIZE
    return b_block, b_slot, m_token
