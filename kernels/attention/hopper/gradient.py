"""The Gluon kernel of all three gradients on Hopper: programs own keys, walk the queries, add to dQ in turns.

Programs are persistent, one a multiprocessor, and take key blocks one after another. A program keeps K, V,
dK and dV of its key block on chip. For each query block it forms, keys by queries,

    S^T = K Q^T,  P^T = exp2(S^T - LSE),  dP^T = V dO^T,  dV += P^T dO,  dS^T = P^T * (dP^T - delta),
    dK += dS^T Q,  dQ = dS K,

five products, where kernels that own either keys or queries need seven (S and dP twice). P^T and dS^T are
register operands of the products that they feed; dS crosses shared memory once, for dQ, whose tiles join
their sums in an order that makes them the same bits every time (see turns.py).

Two warpgroups compute, 64 keys of the block each. Of four more warps one loads, one adds dQ tiles and two
scale the finished sums of key blocks before. While one warpgroup is at its exponentials, the other has the
tensor cores: running a step's products on into the next step gained nothing over that, and cost registers.

All warps walk the same key blocks and count steps across them. The loading warp runs ahead: the next key
block's first Q and dO come during the last step, its K and V as soon as that step has read the old ones,
while dV and then dK leave through a tile of their own and the adding warp waits for its turn.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile), s_ shared memory, d_ TMA descriptor.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from lit_eff.kernels.attention.hopper.mask import hide_from
from lit_eff.kernels.attention.hopper.pipeline import allocate_tiles, zero_here
from lit_eff.kernels.attention.hopper.turns import (
    Problem,
    add_in_turn,
    block_barrier,
    query_block,
    scale_finished,
    work_of,
)


class Tiles(NamedTuple):
    """Shared memory: keys and values, rings of query tiles and of their rows, dS^T, dQ and what is stored."""

    k: Any
    v: Any
    q: Any
    lse: Any
    dout: Any
    delta: Any
    ds: Any
    dq: Any
    stored: Any  # dV, then dK


class Barriers(NamedTuple):
    """``over`` ends a step: its dQ is there; its dO, K, V and the Q of the step before have been read."""

    keys_full: Any
    q_full: Any
    dout_full: Any
    over: Any
    dq_empty: Any


@gluon.jit
def _allocate_barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    barriers = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(barriers.index(i), count=ARRIVALS)
    return barriers


@gluon.jit
def _wait(barriers, n):
    """Wait for the n-th phase of a ring of barriers."""
    SLOTS: gl.constexpr = barriers.shape[0]
    mbarrier.wait(barriers.index(n % SLOTS), n // SLOTS & 1)


@gluon.jit
def _wait_before(barriers, n):
    """Wait for the phase one round before the n-th: at once in the first round."""
    SLOTS: gl.constexpr = barriers.shape[0]
    mbarrier.wait(barriers.index(n % SLOTS), (n // SLOTS & 1) ^ 1)


@gluon.jit
def _matrix(s_tiles, i):
    """A tile (1, rows, 1, D) as the matrix (rows, D) that it is."""
    return s_tiles.index(i).reshape([s_tiles.shape[2], s_tiles.shape[4]])


@gluon.jit
def _load(d_source, place, full, s_tile):
    """Start copying a tile; barriers count two, a pair of tiles each."""
    mbarrier.expect(full, d_source.block_type.nbytes)
    tma.async_copy_global_to_shared(d_source, place, full, s_tile)


@gluon.jit
def _load_tiles(
    d_q, d_k, d_v, d_dout, d_lse, d_delta, tiles, barriers, problem,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """The loading warp: Q with its log-sum-exp and dO with its delta block by block, K and V once an item."""
    Q_SLOTS: gl.constexpr = tiles.q.shape[0]
    DOUT_SLOTS: gl.constexpr = tiles.dout.shape[0]
    i_step = 0
    for item in range(gl.program_id(0), problem.items, gl.num_programs(0)):
        work = work_of(item, problem, BLOCK_M, BLOCK_N, CAUSAL)
        for i_group in range(problem.group):
            i_h = work.i_kv * problem.group + i_group
            o_head = (work.i_b * problem.heads + i_h) * problem.query_blocks
            for i in range(work.count):
                first = query_block(work, i, problem) * BLOCK_M
                o_row = o_head * BLOCK_M + first
                _wait_before(barriers.over, i_step)
                slot = i_step % Q_SLOTS
                full = barriers.q_full.index(slot)
                _load(d_q, [work.i_b, first, i_h, 0], full, tiles.q.index(slot))
                _load(d_lse, [o_row], full, tiles.lse.index(slot))
                slot = i_step % DOUT_SLOTS
                full = barriers.dout_full.index(slot)
                _load(d_dout, [work.i_b, first, i_h, 0], full, tiles.dout.index(slot))
                _load(d_delta, [o_row], full, tiles.delta.index(slot))
                if i_group + i == 0:
                    # Once the step before is over, the last of the item before has read its K and V.
                    _wait_before(barriers.over, i_step + DOUT_SLOTS - 1)
                    place = [work.i_b, work.i_n * BLOCK_N, work.i_kv, 0]
                    full = barriers.keys_full.index(0)
                    _load(d_k, place, full, tiles.k.index(0))
                    _load(d_v, place, full, tiles.v.index(0))
                i_step += 1


@gluon.constexpr_function
def _query_layout(BLOCK_M, HEAD_DIM):
    """Accumulators of dQ: the two warpgroups side by side if the block has the rows of one, else stacked."""
    across = 2 if BLOCK_M == 64 else 1
    return gl.NVMMADistributedLayout([3, 0], [8 // across, across], [16, HEAD_DIM // across, 16])


@gluon.constexpr_function
def _score_layout(BLOCK_M):
    """Accumulators of S^T and dP^T: 64 keys a warpgroup."""
    return gl.NVMMADistributedLayout([3, 0], [8, 1], [16, BLOCK_M, 16])


@gluon.jit
def _keys_by_queries(s_keys, s_queries):
    """Start the product of a key tile and a query tile, both by rows: (keys, queries)."""
    BLOCK_N: gl.constexpr = s_keys.shape[0]
    BLOCK_M: gl.constexpr = s_queries.shape[0]
    b_zero = gl.zeros([BLOCK_N, BLOCK_M], gl.float32, _score_layout(BLOCK_M))
    return warpgroup_mma(s_keys, s_queries.permute((1, 0)), b_zero, use_acc=False, is_async=True)


@gluon.jit
def _query_gradient(s_ds, s_k):
    """Start dQ = dS K from dS^T (keys, queries) and K (keys, dims)."""
    BLOCK_M: gl.constexpr = s_ds.shape[1]
    HEAD_DIM: gl.constexpr = s_k.shape[1]
    b_zero = gl.zeros([BLOCK_M, HEAD_DIM], gl.float32, _query_layout(BLOCK_M, HEAD_DIM))
    return warpgroup_mma(s_ds.permute((1, 0)), s_k, b_zero, use_acc=False, is_async=True)


@gluon.jit
def _add_product(b_left, s_right, b_sum):
    """Start sum += left right, the left operand from registers."""
    layout: gl.constexpr = gl.DotOperandLayout(0, b_sum.type.layout, 2)
    return warpgroup_mma(gl.convert_layout(b_left, layout), s_right, b_sum, is_async=True)


@gluon.jit
def _weights(b_s, b_lse, i_m, i_n, problem, score_scale, CAUSAL: gl.constexpr, MASKED: gl.constexpr):
    """P^T = exp2(S^T - LSE), 0 where the query does not see the key."""
    BLOCK_N: gl.constexpr = b_s.shape[0]
    BLOCK_M: gl.constexpr = b_s.shape[1]
    if MASKED:  # keys past the last one count as later than any query's
        o_n = i_n * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(1, b_s.type.layout))
        o_n = gl.where(o_n < problem.keys, o_n - (problem.keys - problem.queries), 1 << 30)
        o_stop = gl.full([BLOCK_M], 1 << 30, gl.int32, b_lse.type.layout)
        if CAUSAL:
            o_stop = i_m * BLOCK_M + 1 + gl.arange(0, BLOCK_M, b_lse.type.layout)
        b_s = hide_from(b_s, o_n[:, None], o_stop[None, :])
    return gl.exp2(b_s * score_scale - b_lse[None, :])


@gluon.jit
def _walk_queries(
    b_dk, b_dv, i_step, tiles, barriers, work, start, stop, problem, score_scale,
    CAUSAL: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Add steps [start, stop) of a walk to dK and dV, and hand over this key block's part of their dQ."""
    dtype: gl.constexpr = tiles.k.dtype
    Q_SLOTS: gl.constexpr = tiles.q.shape[0]
    DOUT_SLOTS: gl.constexpr = tiles.dout.shape[0]
    STEPS: gl.constexpr = barriers.over.shape[0]
    rows: gl.constexpr = gl.SliceLayout(0, _score_layout(tiles.q.shape[2]))
    # Log-sum-exp and delta are read before the products that they meet are there, where registers allow.
    EARLY: gl.constexpr = not MASKED and tiles.q.shape[2] == 64
    for i in range(start, stop):
        only = zero_here()
        s_k = _matrix(tiles.k, only)
        s_ds = tiles.ds.index(only)
        s_q = _matrix(tiles.q, i_step % Q_SLOTS)
        s_dout = _matrix(tiles.dout, i_step % DOUT_SLOTS)
        _wait(barriers.q_full, i_step)
        b_s = _keys_by_queries(s_k, s_q)
        if EARLY:
            b_lse = tiles.lse.index(i_step % Q_SLOTS).load(rows)
        _wait(barriers.dout_full, i_step)
        b_dp = _keys_by_queries(_matrix(tiles.v, only), s_dout)
        b_s = warpgroup_mma_wait(1, (b_s,))
        if not EARLY:
            b_lse = tiles.lse.index(i_step % Q_SLOTS).load(rows)
        i_m = query_block(work, i, problem)
        b_p = _weights(b_s, b_lse, i_m, work.i_n, problem, score_scale, CAUSAL, MASKED)
        if EARLY:
            b_delta = tiles.delta.index(i_step % DOUT_SLOTS).load(rows)
        b_dp, b_p = warpgroup_mma_wait(0, (b_dp, b_p))  # P is formed before this wait, not after

        b_dv = _add_product(b_p.to(dtype), s_dout, b_dv)
        if not EARLY:
            b_delta = tiles.delta.index(i_step % DOUT_SLOTS).load(rows)
        b_ds = (b_p * (b_dp - b_delta[None, :])).to(dtype)
        s_ds.store(b_ds)
        fence_async_shared()
        block_barrier()
        b_dq = _query_gradient(s_ds, s_k)
        b_dk = _add_product(b_ds, s_q, b_dk)
        b_dq, b_dv = warpgroup_mma_wait(1, (b_dq, b_dv))
        _wait_before(barriers.dq_empty, i_step)
        tiles.dq.index(only).store(b_dq)
        fence_async_shared()
        block_barrier()
        mbarrier.arrive(barriers.over.index(i_step % STEPS), count=1)
        b_dk = warpgroup_mma_wait(0, (b_dk,))
        i_step += 1
    return b_dk, b_dv, i_step


@gluon.jit
def _store(b_tile, d_tiles, place, s_stored):
    """Start writing a tile, through shared memory that the store before may still read."""
    tma.store_wait(0)
    block_barrier()
    _matrix(s_stored, 0).store(b_tile.to(s_stored.dtype))
    fence_async_shared()
    block_barrier()
    tma.async_copy_shared_to_global(d_tiles, place, s_stored.index(0))


@gluon.jit
def _compute(
    d_dk, d_dv, tiles, barriers, problem, score_scale, scale,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """The two computing warpgroups."""
    HEAD_DIM: gl.constexpr = tiles.k.shape[4]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [8, 1], [16, HEAD_DIM, 16])
    i_step = 0
    for item in range(gl.program_id(0), problem.items, gl.num_programs(0)):
        work = work_of(item, problem, BLOCK_M, BLOCK_N, CAUSAL)
        plain_stop = work.count - work.masked_tail
        b_dk = gl.zeros([BLOCK_N, HEAD_DIM], gl.float32, layout)
        b_dv = gl.zeros([BLOCK_N, HEAD_DIM], gl.float32, layout)
        _wait(barriers.keys_full, item // gl.num_programs(0))
        for _ in range(problem.group):
            b_dk, b_dv, i_step = _walk_queries(
                b_dk, b_dv, i_step, tiles, barriers, work, 0, work.masked_head, problem, score_scale,
                CAUSAL, True,
            )  # fmt: skip
            b_dk, b_dv, i_step = _walk_queries(
                b_dk, b_dv, i_step, tiles, barriers, work, work.masked_head, plain_stop, problem, score_scale,
                CAUSAL, False,
            )  # fmt: skip
            if CAUSAL:
                b_dk, b_dv, i_step = _walk_queries(
                    b_dk, b_dv, i_step, tiles, barriers, work, plain_stop, work.count, problem, score_scale,
                    CAUSAL, True,
                )  # fmt: skip
        place = [work.i_b, work.i_n * BLOCK_N, work.i_kv, 0]
        _store(b_dv, d_dv, place, tiles.stored)
        _store(b_dk * scale, d_dk, place, tiles.stored)
    tma.store_wait(0)


SIZES = (
    "queries", "keys", "heads", "group", "batch",
    "query_blocks", "key_blocks", "items", "together", "rotated", "scaled",
)  # fmt: skip


@gluon.jit(do_not_specialize=SIZES)  # one compiled kernel serves all lengths
def attention_gradient_kernel(
    d_q, d_k, d_v, d_dout, d_lse, d_delta, d_dk, d_dv, d_dq_sum, p_dq_sum, p_dq, p_turns,
    queries, keys, heads, group, batch, query_blocks, key_blocks, items, together, rotated, scaled,
    score_scale, scale,
    CAUSAL: gl.constexpr, Q_SLOTS: gl.constexpr, DOUT_SLOTS: gl.constexpr,
):  # fmt: skip
    """dK and dV of all key blocks, the sums of dQ, and contiguous dQ itself where ``scaled`` says."""
    BLOCK_M: gl.constexpr = d_q.block_type.shape[1]
    BLOCK_N: gl.constexpr = d_k.block_type.shape[1]
    HEAD_DIM: gl.constexpr = d_q.block_type.shape[3]
    problem = Problem(
        queries, keys, heads, group, batch, query_blocks, key_blocks, items, together, rotated, scaled
    )
    ds_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, BLOCK_M], d_q.dtype)
    tiles = Tiles(
        allocate_tiles(d_k, 1),
        allocate_tiles(d_v, 1),
        allocate_tiles(d_q, Q_SLOTS),
        allocate_tiles(d_lse, Q_SLOTS),
        allocate_tiles(d_dout, DOUT_SLOTS),
        allocate_tiles(d_delta, DOUT_SLOTS),
        gl.allocate_shared_memory(d_q.dtype, [1, BLOCK_N, BLOCK_M], ds_layout),
        allocate_tiles(d_dq_sum, 1),
        allocate_tiles(d_dk, 1),
    )
    barriers = Barriers(
        _allocate_barriers(1, 2),
        _allocate_barriers(Q_SLOTS, 2),
        _allocate_barriers(DOUT_SLOTS, 2),
        _allocate_barriers(DOUT_SLOTS, 1),
        _allocate_barriers(1, 1),
    )
    fence_async_shared()
    gl.warp_specialize(
        [
            (
                _compute,
                (d_dk, d_dv, tiles, barriers, problem, score_scale, scale, BLOCK_M, BLOCK_N, CAUSAL),
            ),
            (
                _load_tiles,
                (
                    d_q, d_k, d_v, d_dout, d_lse, d_delta, tiles, barriers, problem,
                    BLOCK_M, BLOCK_N, CAUSAL,
                ),
            ),
            (
                add_in_turn,
                (
                    d_dq_sum, p_turns, tiles.dq, barriers.over, barriers.dq_empty, problem,
                    BLOCK_M, BLOCK_N, CAUSAL,
                ),
            ),
            (
                scale_finished,
                (
                    p_dq_sum, p_dq, p_turns, scale, problem,
                    HEAD_DIM, BLOCK_M, BLOCK_N, CAUSAL,
                ),
            ),
        ],
        [1, 1, 2],
        [24, 24, 24],
    )  # fmt: skip
