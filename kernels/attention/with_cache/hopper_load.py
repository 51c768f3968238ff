"""The loading warp of the Hopper split kernel: rings of K and V tiles, kept full by the copy engine (TMA).

A tile lies in shared memory as columns of 64, each row 128 bytes. A page of 8, 16 or 32 slots fills a stretch
of such a column: a tile is as many copies as it has pages and columns.

Shapes: B batch, S cache slots, P pages a row, K kv heads, D head dim.
Prefixes: p_ pointer, i_ index, o_ offset, s_ shared memory, d_ TMA descriptor.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from lit_eff.kernels.attention.hopper.pipeline import Ring
from lit_eff.kernels.attention.with_cache.hopper_items import item_of

COLUMNS = gl.constexpr(64)  # of a 128-byte row


@gluon.jit
def allocate_ring(d_rows, SLOTS: gl.constexpr, BLOCK_N: gl.constexpr, HEAD_DIM: gl.constexpr):
    """A ring of (BLOCK_N, HEAD_DIM) tiles that one partition reads."""
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, HEAD_DIM], d_rows.dtype)
    tiles = gl.allocate_shared_memory(d_rows.dtype, [SLOTS, BLOCK_N, HEAD_DIM], layout)
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(SLOTS):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    return Ring(tiles, full, empty)


@gluon.jit
def tile_of(ring, n):
    """The n-th tile of a ring."""
    SLOTS: gl.constexpr = ring.tiles.shape[0]
    return ring.tiles.index(n % SLOTS)


@gluon.jit
def _places(item, slot, problem, PAGE_SIZE: gl.constexpr, COPIED: gl.constexpr, BLOCK_N: gl.constexpr):
    """Page of each of a step's copies of ``COPIED`` slots (the first page past the end), or the batch row."""
    places = ()
    if PAGE_SIZE == 0:
        places += (item.i_b,)  # type: ignore[assignment]
    else:
        p_table = problem.p_page_table + item.i_b.to(gl.int64) * problem.stride_table_b
        for i in gl.static_range(BLOCK_N // COPIED):
            o_n = slot + i * COPIED
            p_entry = p_table + o_n // PAGE_SIZE * problem.stride_table_p
            places += (gl.load(p_entry, mask=o_n < item.stop, other=0).to(gl.int32),)  # type: ignore[assignment]
    return places


@gluon.jit
def _load_tile(ring, n, d_rows, places, slot, i_kv, PAGE_SIZE: gl.constexpr):
    """Start copying the keys or values from ``slot`` on as the n-th tile, once its place is free."""
    SLOTS: gl.constexpr = ring.tiles.shape[0]
    COPIED: gl.constexpr = d_rows.block_type.shape[1]
    COPIES: gl.constexpr = ring.tiles.shape[1] // COPIED
    HALVES: gl.constexpr = ring.tiles.shape[2] // COLUMNS
    s_pieces = ring.tiles._reinterpret(
        d_rows.dtype, [SLOTS * HALVES * COPIES, 1, COPIED, 1, COLUMNS], d_rows.layout
    )
    full = ring.full.index(n % SLOTS)
    mbarrier.wait(ring.empty.index(n % SLOTS), ((n // SLOTS) & 1) ^ 1)
    mbarrier.expect(full, HALVES * COPIES * d_rows.block_type.nbytes)
    for i in gl.static_range(COPIES):
        o_n = slot + i * COPIED
        if PAGE_SIZE > 0:
            o_n = o_n % PAGE_SIZE
        for half in gl.static_range(HALVES):
            tma.async_copy_global_to_shared(
                d_rows, [places[i], o_n, i_kv, half * COLUMNS], full,
                s_pieces.index((n % SLOTS * HALVES + half) * COPIES + i),
            )  # fmt: skip


@gluon.jit
def produce(
    d_k, d_v, keys, values, problem,
    ROWS: gl.constexpr, UNIT: gl.constexpr, PAGE_SIZE: gl.constexpr, WINDOWED: gl.constexpr,
    WHOLE: gl.constexpr,
):  # fmt: skip
    """The loading warp: K and V step by step, items that have none passed over.

    The copy engine yields 0 for slots past the cache and for pages that there are not; all of a tile's bytes
    arrive, whatever of them is seen.
    """
    BLOCK_N: gl.constexpr = keys.tiles.shape[1]
    COPIED: gl.constexpr = d_k.block_type.shape[1]
    n = 0
    for i_item in range(gl.program_id(0), problem.items, gl.num_programs(0)):
        item = item_of(i_item, problem, ROWS, BLOCK_N, UNIT, WINDOWED, WHOLE)
        places = _places(item, item.begin, problem, PAGE_SIZE, COPIED, BLOCK_N)
        for slot in range(item.begin, item.end, BLOCK_N):
            # The next step's pages are asked for before the waits of this one.
            next_places = _places(item, slot + BLOCK_N, problem, PAGE_SIZE, COPIED, BLOCK_N)
            _load_tile(keys, n, d_k, places, slot, item.i_kv, PAGE_SIZE)
            _load_tile(values, n, d_v, places, slot, item.i_kv, PAGE_SIZE)
            places = next_places
            n += 1
