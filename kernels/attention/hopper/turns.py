"""In which order the programs of the gradient kernel take their work, and how they add to dQ in turns.

An item of work is one key block of a kv head. Programs are persistent: of n programs, program p takes the
items p, p + n, p + 2 n, ...

dQ of a query block is a sum over key blocks, each another item. Every query block has a counter of how many
have added to it; a program adds its part (the copy engine's reduction, in the L2 cache) when its turn has
come, then moves the counter on. The order of the sum is fixed, and so is every bit of dQ.

The order also says how long programs wait. They should reach a query block one after another by themselves:

- Causal: key blocks of a head start from the last, which the fewest queries see, each at its diagonal: one
  step apart at every query block. That leaves the longest walks for the end, so every second group of heads
  goes the other way round: the first key block first, from the last query back to the diagonal. Then a short
  walk of one group and a long one of the next fill a multiprocessor's time evenly.
- Not causal: each key block starts at its own place among the query blocks and goes round. Items then wait
  for one another in a circle, so all of a head run at once: the number of programs is a multiple of the key
  blocks, and each round takes whole heads. Where that would leave too many multiprocessors idle, walks start
  at query 0, and fall into step in the first round.

All programs run at once, or none does: the launch is cooperative, so that no kernel beside it (a collective
on another stream, say) keeps out a program that others wait for. An item waits for items of its own round, or
only for lower ones: the lowest that is unfinished never does, and its program has come to it.

A finished sum is scaled and rounded in the background too; of those that the last items finish, there is
nothing left to hide it behind.

Prefixes: p_ pointer, o_ offset, m_ mask, i_ index, b_ block (tile), s_ shared memory, d_ TMA descriptor.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from typing import Any, NamedTuple

from triton._C.libtriton import ir
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

block_barrier = getattr(gl, "barrier", None) or gl.thread_barrier  # Triton 3.7 renamed it


class Problem(NamedTuple):
    """Sizes of a call, in elements, heads and blocks."""

    queries: Any
    keys: Any
    heads: Any
    group: Any  # query heads a kv head
    batch: Any
    query_blocks: Any
    key_blocks: Any
    items: Any  # key blocks of all kv heads
    together: Any  # kv heads whose key blocks are taken in turns
    rotated: Any  # 1: key blocks start at their own places, 0: at query 0
    scaled: Any  # query blocks whose sums the gradient kernel scales itself, from the first head's on


class Work(NamedTuple):
    """A key block and its walk: ``count`` query blocks from ``first`` on, ``stride`` (1 or -1) apart.

    The first ``masked_head`` and the last ``masked_tail`` of them hide some keys from some queries. There is
    always one at least: the last query sees all keys.
    """

    i_b: Any
    i_kv: Any
    i_n: Any
    first: Any
    stride: Any
    count: Any
    masked_head: Any
    masked_tail: Any


@gluon.jit
def work_of(item, problem, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr):
    """The work of an item."""
    kv_heads = problem.heads // problem.group
    heads_before = item // (problem.together * problem.key_blocks) * problem.together
    place = item - heads_before * problem.key_blocks
    together = gl.minimum(problem.together, kv_heads * problem.batch - heads_before)
    i_head = heads_before + place % together
    rank = place // together
    i_n = problem.key_blocks - 1 - rank
    first = problem.rotated * (i_n * problem.query_blocks // problem.key_blocks)
    stride = 1
    count = problem.query_blocks
    masked_head = 0
    masked_tail = 0
    if CAUSAL:
        backwards = heads_before // problem.together & 1
        i_n = gl.where(backwards == 1, rank, i_n)
        offset = problem.keys - problem.queries
        last_key = gl.minimum((i_n + 1) * BLOCK_N, problem.keys) - 1
        start = gl.maximum(i_n * BLOCK_N - offset, 0) // BLOCK_M
        diagonal = (
            gl.minimum(gl.cdiv(gl.maximum(last_key - offset, 0), BLOCK_M), problem.query_blocks) - start
        )
        count -= start
        first = gl.where(backwards == 1, problem.query_blocks - 1, start)
        stride = 1 - 2 * backwards
        masked_head = gl.where(backwards == 1, 0, diagonal)
        masked_tail = gl.where(backwards == 1, diagonal, 0)
    if (i_n + 1) * BLOCK_N > problem.keys:
        masked_head = count
        masked_tail = 0
    return Work(i_head // kv_heads, i_head % kv_heads, i_n, first, stride, count, masked_head, masked_tail)


@gluon.jit
def query_block(work, i, problem):
    """The i-th query block of a walk."""
    i_m = work.first + i * work.stride
    return gl.where(i_m >= problem.query_blocks, i_m - problem.query_blocks, i_m)


@gluon.jit
def _key_blocks_seen(i_m, problem, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr):
    """How many key blocks add to a query block."""
    seen = problem.key_blocks
    if CAUSAL:
        stop = gl.minimum((i_m + 1) * BLOCK_M, problem.queries) + problem.keys - problem.queries
        seen = gl.minimum(seen, gl.cdiv(gl.maximum(stop, 0), BLOCK_N))
    return seen


@gluon.jit
def _turn(work, i_m, problem, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr):
    """How many key blocks add to query block ``i_m`` before that of ``work``."""
    if CAUSAL:
        seen = _key_blocks_seen(i_m, problem, BLOCK_M, BLOCK_N, CAUSAL)
        turn = gl.where(work.stride > 0, seen - 1 - work.i_n, work.i_n)
    else:
        opener = (
            (i_m + 1) * problem.key_blocks - 1
        ) // problem.query_blocks  # the last that starts before i_m
        turn = gl.where(problem.rotated == 1, opener, problem.key_blocks - 1) - work.i_n
        turn = gl.where(turn < 0, turn + problem.key_blocks, turn)
    return turn


@gl._core.builtin
def _async_add_shared_to_global(tensor_desc, coord, src, _semantic=None):
    """The copy engine's reduction, shared memory added to global memory: Gluon has no name for it yet."""
    coord = _semantic._convert_to_ir_values(coord, require_i64=False)
    add = ir.DESCRIPTOR_REDUCE_KIND.ADD
    _semantic.builder.create_async_tma_reduce(add, tensor_desc.handle, coord, src.handle)


@gluon.jit
def _wait_for_count(p_turn, count, NAP: gl.constexpr):
    """Wait until ``count`` key blocks have added, looking again after ``NAP`` ns."""
    now = 0
    while now < count:
        now = gl.inline_asm_elementwise(
            "ld.acquire.gpu.global.b32 $0, [$1];", "=r,l", [p_turn], gl.int32, is_pure=False, pack=1
        )
        if NAP > 0:
            gl.inline_asm_elementwise(
                "nanosleep.u32 $1; mov.b32 $0, 0;", "=r,r", [gl.to_tensor(NAP)], gl.int32,
                is_pure=False, pack=1,
            )  # fmt: skip


@gluon.jit
def add_in_turn(
    d_dq_sum, p_turns, s_dq, step_over, dq_empty, problem,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """The adding warp: dQ tiles join the sums of their query blocks in turn, the first by a plain store."""
    STEPS: gl.constexpr = step_over.shape[0]
    i_step = 0
    for item in range(gl.program_id(0), problem.items, gl.num_programs(0)):
        work = work_of(item, problem, BLOCK_M, BLOCK_N, CAUSAL)
        for i_group in range(problem.group):
            o_head = (work.i_b * problem.heads + work.i_kv * problem.group + i_group) * problem.query_blocks
            for i in range(work.count):
                i_m = query_block(work, i, problem)
                turn = _turn(work, i_m, problem, BLOCK_M, BLOCK_N, CAUSAL)
                row = (o_head + i_m) * BLOCK_M
                mbarrier.wait(step_over.index(i_step % STEPS), i_step // STEPS & 1)
                _wait_for_count(p_turns + o_head + i_m, turn, 0)
                if turn == 0:
                    tma.async_copy_shared_to_global(d_dq_sum, [row, 0], s_dq.index(0))
                else:
                    _async_add_shared_to_global(d_dq_sum, [row, 0], s_dq.index(0))
                tma.store_wait(0)  # the tile has left shared memory
                mbarrier.arrive(dq_empty.index(0), count=1)
                # Once the sum is in place, the next in turn may add.
                gl.inline_asm_elementwise(
                    "cp.async.bulk.wait_group 0; mov.b32 $0, 0;", "=r", [], gl.int32, False, 1
                )
                block_barrier()
                gl.inline_asm_elementwise(
                    "st.release.gpu.global.b32 [$1], $2; mov.b32 $0, 0;", "=r,l,r",
                    [p_turns + o_head + i_m, turn + 1], gl.int32, is_pure=False, pack=1,
                )  # fmt: skip
                i_step += 1


@gluon.jit
def scale_finished(
    p_dq_sum, p_dq, p_turns, scale, problem,
    HEAD_DIM: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """The scaling warps: dQ = scale * sum for the query blocks below ``scaled``, once all have added.

    The rest is left to `backward.attention_scale_query_gradient_kernel`.
    """
    ROWS: gl.constexpr = 512 // HEAD_DIM
    LANES: gl.constexpr = HEAD_DIM // 4
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [32 // LANES, LANES], [2, 1], [1, 0])
    o_row = gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    o_d = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, layout))
    stride = problem.heads * HEAD_DIM  # dQ is contiguous: the compiler sees that it can store whole vectors
    for i in range(gl.program_id(0), problem.scaled, gl.num_programs(0)):
        i_m = i % problem.query_blocks
        i_bh = i // problem.query_blocks
        seen = _key_blocks_seen(i_m, problem, BLOCK_M, BLOCK_N, CAUSAL)
        _wait_for_count(p_turns + i, seen, 200)
        first = i_m * BLOCK_M
        p_sums = p_dq_sum + gl.cast(i, gl.int64) * (BLOCK_M * HEAD_DIM)
        p_rows = p_dq + gl.cast(i_bh // problem.heads * problem.queries + first, gl.int64) * stride
        p_rows += i_bh % problem.heads * HEAD_DIM
        # Few registers: places are scalars, and a lane's offsets from them 32 bits.
        for row in range(first, gl.minimum(first + BLOCK_M, problem.queries), ROWS):
            b_sum = gl.load(p_sums + (o_row[:, None] * HEAD_DIM + o_d[None, :]), cache_modifier=".cg")
            b_sum = gl.where(seen > 0, b_sum, 0.0)  # nobody has written the sums of queries that see nothing
            b_dq = (b_sum * scale).to(p_dq.dtype.element_ty)
            m_rows = (row + o_row < problem.queries)[:, None]
            gl.store(p_rows + (o_row[:, None] * stride + o_d[None, :]), b_dq, mask=m_rows)
            p_sums += ROWS * HEAD_DIM
            p_rows += ROWS * stride
