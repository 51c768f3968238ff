"""Small Triton kernels with every kind of memory access, for the counter and the compiler."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from tests.profiling.toy_functions import load_first


@triton.jit
def add_kernel(p_x, p_y, p_sum, count, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = o < count
    tl.store(p_sum + o, tl.load(p_x + o, mask=m) + tl.load(p_y + o, mask=m), mask=m)


@triton.jit
def strided_read_kernel(p_x, p_out, stride, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    tl.store(p_out + o, tl.load(p_x + o * stride))


@triton.jit
def histogram_kernel(p_x, p_counts, p_lock, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    tl.atomic_add(p_counts + tl.load(p_x + o), 1)
    tl.atomic_cas(p_lock, 0, 1)


@triton.jit
def descriptor_copy_kernel(x, y, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK
    y.store([row, 0], x.load([row, 0]))


@triton.jit
def gather_kernel(x, p_rows, y, BLOCK: tl.constexpr):
    rows = tl.load(p_rows + tl.arange(0, BLOCK))
    y.scatter(x.gather(rows, 0), rows, 0)


@triton.jit
def twice_kernel(p_x, p_out, count, BLOCK: tl.constexpr):
    first = load_first(p_x, count, BLOCK)
    second = load_first(p_out, count, BLOCK)
    o = tl.arange(0, BLOCK)
    again = tl.load(p_x + o + 8)
    tl.store(
        p_out + o,
        first + second + again,
        mask=o < count,
    )


@triton.jit
def block_pointer_copy_kernel(p_x, p_y, rows, columns, BLOCK: tl.constexpr):
    source = tl.make_block_ptr(p_x, (rows, columns), (columns, 1), (0, 0), (BLOCK, BLOCK), (1, 0))
    target = tl.make_block_ptr(p_y, (rows, columns), (columns, 1), (0, 0), (BLOCK, BLOCK), (1, 0))
    tl.store(target, tl.load(source, boundary_check=(0, 1)), boundary_check=(0, 1))


@triton.jit
def shared_memory_kernel(p_x, p_y, p_out, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(p_out + o, tl.dot(tl.load(p_x + o), tl.load(p_y + o)))
