"""The Gluon forward kernel for Hopper: FlashAttention-3's ideas (Shah et al. 2024, sections 3.1 and 3.2).

One warp is the producer: it keeps the rings of K and V tiles full through the copy engine (TMA) and never
computes. Each consumer warpgroup owns 64 queries. A consumer issues the product Q K^T of the next key block
and the product P V of the current one together, and turns the former into weights while the tensor cores
still work on the latter (`_walk_keys`). Programs are persistent, one a multiprocessor, so that the producer
fetches the next tile's queries and keys while the consumers finish the last one.

Key blocks are walked from the last to the first: a causal tile's diagonal comes first, the ragged end of the
keys too, and the blocks that need no mask follow in a loop of their own.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
Prefixes: p_ pointer, i_ index, o_ offset, b_ register tile, s_ shared memory, d_ TMA descriptor.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.kernels.attention.hopper.mask import hide_from
from lit_eff.kernels.attention.hopper.pipeline import (
    allocate_ring,
    allocate_tiles,
    load_next,
    matrix_of,
    multiprocessors,
    release,
    row_tiles,
    wait_full,
)
from lit_eff.kernels.attention.hopper.schedule import (
    ROWS,
    Problem,
    inner_blocks,
    own_blocks,
    sight,
    tile_of,
    turns_of,
)
from lit_eff.kernels.attention.hopper.shapes import REGISTERS, ForwardShape, forward_shape, heads_together
from lit_eff.profiling.launch import Launch

LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)


@gluon.jit
def _load_first(
    d_q, d_k, queries, keys, turn, n, tile, problem, CONSUMERS: gl.constexpr, BLOCK_N: gl.constexpr
):
    """Load the queries of a tile and the first of its keys."""
    for c in gl.static_range(CONSUMERS):
        load_next(queries, turn * CONSUMERS + c, d_q, tile.i_b, tile.first + c * ROWS, tile.i_h)
    load_next(keys, n, d_k, tile.i_b, (tile.stop - 1) * BLOCK_N, tile.i_h // problem.group)


@gluon.jit
def _produce(
    d_q, d_k, d_v, queries, keys, values, problem,
    CONSUMERS: gl.constexpr, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """Load every tile of Q, K and V in the order in which the consumers come to need them.

    Keys go one block ahead of values, from tile to tile too.
    """
    BLOCK_M: gl.constexpr = CONSUMERS * ROWS
    turns = turns_of(problem)
    tile = tile_of(0, problem, BLOCK_M, BLOCK_N, CAUSAL)
    n = 0
    _load_first(d_q, d_k, queries, keys, 0, n, tile, problem, CONSUMERS, BLOCK_N)
    for turn in range(turns):
        following = tile_of(gl.minimum(turn + 1, turns - 1), problem, BLOCK_M, BLOCK_N, CAUSAL)
        i_kv = tile.i_h // problem.group
        for j in range(tile.stop - 1 - tile.start):
            i_n = tile.stop - 1 - j
            load_next(keys, n + 1, d_k, tile.i_b, (i_n - 1) * BLOCK_N, i_kv)
            load_next(values, n, d_v, tile.i_b, i_n * BLOCK_N, i_kv)
            n += 1
        if turn + 1 < turns:
            _load_first(d_q, d_k, queries, keys, turn + 1, n + 1, following, problem, CONSUMERS, BLOCK_N)
        load_next(values, n, d_v, tile.i_b, tile.start * BLOCK_N, i_kv)
        n += 1
        tile = following


@gluon.jit
def _weights(
    b_s, b_max, b_sum, i_n, o_m, tile, problem, CAUSAL: gl.constexpr, MASKED: gl.constexpr
):  # fmt: skip
    """Scores to weights relative to the running maximum: weights, maximum, sum, and the decay of older sums.

    The maximum is that of unscaled scores; the scale takes part in the exponent's multiply-add.
    """
    BLOCK_N: gl.constexpr = b_s.shape[1]
    scale = problem.score_scale
    if problem.cap is not None:  # cap * tanh(x), tanh from two fast instructions rather than one coarse
        b_s = problem.cap - 2.0 * problem.cap / (gl.exp2(b_s * (scale * 2.0 * LOG2E)) + 1.0)
        scale = 1.0
    if MASKED:
        o_start, o_stop = sight(o_m, tile.offset, problem, CAUSAL)
        o_n = i_n * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(0, b_s.type.layout))
        b_s = hide_from(b_s, o_n[None, :], o_stop[:, None])
        if problem.window is not None:  # the same comparison, with both sides' signs turned
            b_s = hide_from(b_s, -o_n[None, :], 1 - o_start[:, None])
    b_new_max = gl.maximum(b_max, gl.max(b_s, 1))
    b_reference = b_new_max * scale
    if MASKED:  # a query that has seen no key yet: -inf minus -inf would be NaN
        b_reference = gl.where(b_new_max == float("-inf"), 0.0, b_reference)
    b_p = gl.exp2(b_s * scale - b_reference[:, None])
    b_decay = gl.exp2(b_max * scale - b_reference)
    return b_p, b_new_max, b_sum * b_decay + gl.sum(b_p, 1), b_decay


@gluon.jit
def _scores(s_q, keys, n, LAYOUT: gl.constexpr):
    """Start the product of the queries with the n-th tile of keys."""
    BLOCK_N: gl.constexpr = keys.tiles.shape[2]
    b_zero = gl.zeros([ROWS, BLOCK_N], gl.float32, LAYOUT)
    return warpgroup_mma(s_q, matrix_of(keys, n).permute((1, 0)), b_zero, use_acc=False, is_async=True)


@gluon.jit
def _operand(b_w, DTYPE: gl.constexpr, OUTPUT: gl.constexpr):
    """Weights rounded as the left operand of P V, in the registers where they are.

    Rounding them only where they are used, a walk later, would save an eighth of the loop's instructions, but
    the assembler of CUDA 12.8 makes wrong code of it.
    """
    return gl.convert_layout(b_w.to(DTYPE), gl.DotOperandLayout(0, OUTPUT, 2), assert_trivial=True)


@gluon.jit
def _walk_keys(
    b_acc, b_p, b_max, b_sum, n, top, bottom, s_q, keys, values, o_m, tile, problem,
    CAUSAL: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Fold the key blocks from ``top`` - 1 down to ``bottom`` in: their scores, and P V of the block before.

    ``b_p`` holds the weights of the n-th tile, which the walk before left.
    """
    scores: gl.constexpr = o_m.type.layout.parent
    output: gl.constexpr = b_acc.type.layout
    for j in range(top - bottom):
        wait_full(keys, n + 1)
        b_s = _scores(s_q, keys, n + 1, scores)
        wait_full(values, n)
        b_acc = warpgroup_mma(b_p, matrix_of(values, n), b_acc, is_async=True)
        b_s = warpgroup_mma_wait(1, [b_s])
        release(keys, n + 1)
        b_w, b_max, b_sum, b_decay = _weights(
            b_s, b_max, b_sum, top - 1 - j, o_m, tile, problem, CAUSAL, MASKED
        )
        # The assembler moves the wait for P V up, in front of the softmax that it is there to overlap, unless
        # a branch stands between: this one, on a barrier that has long been passed. It may not move the
        # softmax down either, so the wait takes what the softmax gave.
        wait_full(values, n)
        b_acc, b_w, b_sum = warpgroup_mma_wait(0, [b_acc, b_w, b_sum])
        release(values, n)
        b_acc = b_acc * gl.convert_layout(b_decay, gl.SliceLayout(1, output))[:, None]
        b_p = _operand(b_w, b_p.dtype, output)
        n += 1
    return b_acc, b_p, b_max, b_sum, n


@gluon.jit
def _skip(keys, values, n, count):
    """Release tiles that only the other consumers need."""
    for i in range(n, n + count):
        wait_full(keys, i)
        release(keys, i)
        wait_full(values, i)
        release(values, i)
    return n + count


@gluon.jit
def _first_weights(
    b_s, block, o_m, tile, problem,
    DTYPE: gl.constexpr, OUTPUT: gl.constexpr, CAUSAL: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Rounded weights, maximum and sum of a tile's first key block."""
    rows: gl.constexpr = o_m.type.layout
    b_max = gl.full([ROWS], float("-inf"), gl.float32, rows)
    b_sum = gl.zeros([ROWS], gl.float32, rows)
    b_w, b_max, b_sum, _ = _weights(b_s, b_max, b_sum, block, o_m, tile, problem, CAUSAL, MASKED)
    return _operand(b_w, DTYPE, OUTPUT), b_max, b_sum


@gluon.jit
def _consume(
    d_out, s_out, queries, keys, values, problem,
    WHICH: gl.constexpr, CONSUMERS: gl.constexpr, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr,
    RAGGED: gl.constexpr,
):  # fmt: skip
    """The consumer that owns 64 queries of every tile.

    The first scores of the next tile are under way while the output of the last one is written.
    """
    BLOCK_M: gl.constexpr = CONSUMERS * ROWS
    HEAD_DIM: gl.constexpr = queries.tiles.shape[4]
    dtype: gl.constexpr = keys.tiles.dtype
    WINDOW: gl.constexpr = problem.window is not None
    MASKED: gl.constexpr = CAUSAL or RAGGED or WINDOW
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    output: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    o_row = WHICH * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, scores))
    # Tiles of V are released one late, while up to one at either end is passed over: that many must fit.
    gl.static_assert(keys.tiles.shape[0] >= CONSUMERS)
    s_out = s_out.index(WHICH)

    turns = turns_of(problem)
    tile = tile_of(0, problem, BLOCK_M, BLOCK_N, CAUSAL)
    following = tile_of(gl.minimum(1, turns - 1), problem, BLOCK_M, BLOCK_N, CAUSAL)
    start, stop = own_blocks(tile, problem, WHICH, CONSUMERS, BLOCK_N, CAUSAL)
    i_q = WHICH
    wait_full(queries, i_q)
    n = _skip(keys, values, 0, tile.stop - stop)
    wait_full(keys, n)
    b_s = _scores(matrix_of(queries, i_q), keys, n, scores)
    b_s = warpgroup_mma_wait(0, [b_s])
    release(keys, n)
    b_p, b_max, b_sum = _first_weights(
        b_s, stop - 1, tile.first + o_row, tile, problem, dtype, output, CAUSAL, MASKED
    )
    for turn in range(turns):
        o_m = tile.first + o_row
        s_q = matrix_of(queries, i_q)
        b_acc = gl.zeros([ROWS, HEAD_DIM], gl.float32, output)
        inner_start, inner_stop = start, stop - 1
        if MASKED:
            inner_start, inner_stop = inner_blocks(tile, start, stop, problem, WHICH, BLOCK_N, CAUSAL)
            b_acc, b_p, b_max, b_sum, n = _walk_keys(
                b_acc, b_p, b_max, b_sum, n, stop - 1, inner_stop, s_q, keys, values, o_m, tile, problem,
                CAUSAL, True,
            )  # fmt: skip
        b_acc, b_p, b_max, b_sum, n = _walk_keys(
            b_acc, b_p, b_max, b_sum, n, inner_stop, inner_start, s_q, keys, values, o_m, tile, problem,
            CAUSAL, False,
        )  # fmt: skip
        if WINDOW:
            b_acc, b_p, b_max, b_sum, n = _walk_keys(
                b_acc, b_p, b_max, b_sum, n, inner_start, start, s_q, keys, values, o_m, tile, problem,
                CAUSAL, True,
            )  # fmt: skip
        release(queries, i_q)
        last = tile
        last_n = n
        last_max = b_max
        last_sum = b_sum
        n += 1
        wait_full(values, last_n)
        b_acc = warpgroup_mma(b_p, matrix_of(values, last_n), b_acc, is_async=True)
        if WINDOW:
            n = _skip(keys, values, n, start - tile.start)
        tile = following
        start, stop = own_blocks(tile, problem, WHICH, CONSUMERS, BLOCK_N, CAUSAL)
        if turn + 1 < turns:
            i_q += CONSUMERS
            wait_full(queries, i_q)
            n = _skip(keys, values, n, tile.stop - stop)
            wait_full(keys, n)
        b_s = _scores(matrix_of(queries, i_q), keys, n, scores)
        # Where the tile after the next lies takes divisions, for which there is time here.
        following = tile_of(gl.minimum(turn + 2, turns - 1), problem, BLOCK_M, BLOCK_N, CAUSAL)
        b_acc = warpgroup_mma_wait(1, [b_acc])
        release(values, last_n)

        last_max = last_max * (problem.score_scale if problem.cap is None else 1.0)
        b_keep = 1.0
        if problem.sinks is not None:  # one more key, whose value is zero
            sink = gl.load(problem.sinks + last.i_h) * LOG2E
            b_all_max = gl.maximum(last_max, sink)
            b_reference = gl.where(b_all_max == float("-inf"), 0.0, b_all_max)
            b_keep = gl.exp2(last_max - b_reference)
            last_sum = last_sum * b_keep + gl.exp2(sink - b_reference)
            last_max = b_all_max
        # A query that saw nothing has a maximum of -inf and a sum of 0, divided as 1: output 0, LSE -inf.
        last_sum = gl.where(last_sum == 0.0, 1.0, last_sum)
        b_acc = b_acc * gl.convert_layout(b_keep / last_sum, gl.SliceLayout(1, output))[:, None]
        tma.store_wait(0)
        s_out.reshape([ROWS, HEAD_DIM]).store(b_acc.to(s_out.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(d_out, [last.i_b, last.first + WHICH * ROWS, last.i_h, 0], s_out)
        p_lse = problem.lse + (last.i_b * problem.heads + last.i_h).to(gl.int64) * problem.queries
        gl.store(p_lse + o_m, (last_max + gl.log2(last_sum)) * LN2, mask=o_m < problem.queries)
        b_s = warpgroup_mma_wait(0, [b_s])
        if turn + 1 < turns:
            release(keys, n)
        b_p, b_max, b_sum = _first_weights(
            b_s, stop - 1, tile.first + o_row, tile, problem, dtype, output, CAUSAL, MASKED
        )
    tma.store_wait(0)


SIZES = ["queries", "query_tiles", "keys", "heads", "group", "batch", "together", "window"]


@gluon.jit(do_not_specialize=SIZES)  # one compiled kernel serves all lengths
def attention_forward_kernel(
    d_q, d_k, d_v, d_out, lse, starts, sinks,
    queries, query_tiles, keys, heads, group, batch, together, window, score_scale, cap,
    CONSUMERS: gl.constexpr, BLOCK_N: gl.constexpr, SLOTS: gl.constexpr,
    CAUSAL: gl.constexpr, RAGGED: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    problem = Problem(
        queries,
        query_tiles,
        keys,
        heads,
        group,
        batch,
        together,
        window,
        starts,
        lse,
        sinks,
        score_scale,
        cap,
    )
    queries = allocate_ring(d_q, 2 * CONSUMERS, 1)
    keys = allocate_ring(d_k, SLOTS, CONSUMERS)
    values = allocate_ring(d_v, SLOTS, CONSUMERS)
    s_out = allocate_tiles(d_out, CONSUMERS)
    # fmt: off
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (_consume, (d_out, s_out, queries, keys, values, problem,
                            0, CONSUMERS, BLOCK_N, CAUSAL, RAGGED)),
                (_consume, (d_out, s_out, queries, keys, values, problem,
                            1, CONSUMERS, BLOCK_N, CAUSAL, RAGGED)),
                (_produce, (d_q, d_k, d_v, queries, keys, values, problem, CONSUMERS, BLOCK_N, CAUSAL)),
            ],
            [4, 1],
            [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )
    else:
        gl.warp_specialize(
            [
                (_consume, (d_out, s_out, queries, keys, values, problem,
                            0, CONSUMERS, BLOCK_N, CAUSAL, RAGGED)),
                (_consume, (d_out, s_out, queries, keys, values, problem,
                            1, CONSUMERS, BLOCK_N, CAUSAL, RAGGED)),
                (_consume, (d_out, s_out, queries, keys, values, problem,
                            2, CONSUMERS, BLOCK_N, CAUSAL, RAGGED)),
                (_produce, (d_q, d_k, d_v, queries, keys, values, problem, CONSUMERS, BLOCK_N, CAUSAL)),
            ],
            [4, 4, 1],
            [CONSUMER_REGISTERS, CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )
    # fmt: on


def forward_launch(
    call: AttentionCall, out_BTHD: Tensor, lse_BHT: Tensor, shape: ForwardShape | None = None
) -> Launch:
    """The launch that fills ``out_BTHD`` and the contiguous float32 ``lse_BHT`` of a supported call."""
    shape = shape or forward_shape(call)
    registers, consumer_registers, producer_registers = REGISTERS[shape.consumers]
    query_tiles = -(-call.queries // (ROWS.value * shape.consumers))
    programs = min(query_tiles * call.heads * call.batch, multiprocessors(call.q_BTHD.device))
    rule = call.rule()
    arguments = {
        "d_q": row_tiles(call.q_BTHD, ROWS.value),
        "d_k": row_tiles(call.k_BSKD, shape.block_n),
        "d_v": row_tiles(call.v_BSKD, shape.block_n),
        "d_out": row_tiles(out_BTHD, ROWS.value),
        "lse": lse_BHT,
        "starts": call.starts_B,
        "sinks": call.sinks_H,
        "queries": call.queries,
        "query_tiles": query_tiles,
        "keys": call.keys,
        "heads": call.heads,
        "group": call.heads // call.k_BSKD.shape[2],
        "batch": call.batch,
        "together": heads_together(call, programs),
        "window": call.window,
        "score_scale": rule.score_scale,
        "cap": rule.cap,
        "CONSUMERS": shape.consumers,
        "BLOCK_N": shape.block_n,
        "SLOTS": shape.slots,
        "CAUSAL": call.causal,
        "RAGGED": call.keys % shape.block_n != 0,
        "CONSUMER_REGISTERS": consumer_registers,
        "PRODUCER_REGISTERS": producer_registers,
    }
    return Launch(attention_forward_kernel, (programs,), arguments, num_warps=4, max_registers=registers)
