"""What the Hopper kernels share: tiles that the copy engine (TMA) moves, and the rings they travel through.

A ring is a row of shared-memory slots with two mbarriers each: ``full`` counts the bytes that arrive,
``empty`` the partitions that have read them. The n-th tile of a ring lives in slot n % slots; the barriers'
phase bit flips with every round through the ring.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
Prefixes: i_ index, s_ shared memory, d_ TMA descriptor.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

FIRST_TURN = gl.constexpr(12)  # of 16 named barriers; Triton counts its own from 0 up
ELEMENTS = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}


@functools.cache
def _tile_layout(block: tuple[int, ...], dtype: torch.dtype) -> Any:
    return gl.NVMMASharedLayout.get_default_for(list(block), ELEMENTS[dtype])


def row_tiles(tensor_BTHD: Tensor, rows: int) -> Any:
    """A TMA descriptor of a (B, T, H, D) tensor whose tiles are ``rows`` rows of one head, (1, rows, 1, D).

    Rows past the end read as 0 and are not written. `obstacle_of` says which tensors have a descriptor.
    """
    block = (1, rows, 1, tensor_BTHD.shape[3])
    # The stride of an axis of one element may be anything, but the copy engine wants multiples of 16 bytes.
    strides = [
        stride if size > 1 else 16
        for size, stride in zip(tensor_BTHD.shape[:3], tensor_BTHD.stride()[:3], strict=True)
    ]
    return TensorDescriptor(
        tensor_BTHD,
        list(tensor_BTHD.shape),
        [*strides, 1],
        list(block),
        _tile_layout(block, tensor_BTHD.dtype),
    )


def obstacle_of(name: str, tensor_BTHD: Tensor) -> str | None:
    """Why the copy engine cannot read or write this tensor; None if it can."""
    step = 16 // tensor_BTHD.element_size()
    *outer, last = tensor_BTHD.stride()
    if tensor_BTHD.data_ptr() % 16:
        return f"{name} does not start at a multiple of 16 bytes"
    if last != 1:
        return f"the head dim of {name} is not contiguous"
    for size, stride in zip(tensor_BTHD.shape[:3], outer, strict=True):
        if size > 1 and (stride % step or stride <= 0):
            return f"strides {tuple(tensor_BTHD.stride())} of {name} are not positive multiples of 16 bytes"
    return None


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs of one per multiprocessor run at once; the H100's number where there is no device."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


@gluon.jit
def allocate_tiles(d_rows, COUNT: gl.constexpr):
    """Shared memory for ``COUNT`` tiles of a descriptor."""
    return gl.allocate_shared_memory(d_rows.dtype, [COUNT] + d_rows.block_type.shape, d_rows.layout)


@gluon.jit
def allocate_barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    """``COUNT`` mbarriers whose phase ends after ``ARRIVALS`` arrivals."""
    bars = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(bars.index(i), count=ARRIVALS)
    return bars


@gluon.jit
def as_matrix(s_tile):
    """A tile (1, rows, 1, D) as the matrix (rows, D) that it is."""
    return s_tile.reshape([s_tile.shape[1], s_tile.shape[3]])


@gluon.jit
def load_tile(d_rows, i_b, row, i_h, full, s_tile):
    """Start copying a tile of one head from ``row`` on; ``full`` is signalled once all of it is there."""
    mbarrier.expect(full, d_rows.block_type.nbytes)
    tma.async_copy_global_to_shared(d_rows, [i_b, row, i_h, 0], full, s_tile)


@gluon.jit
def wait_full(full, n):
    """Wait for the n-th tile of a ring, where the ring has as many slots as ``full`` has barriers."""
    SLOTS: gl.constexpr = full.shape[0]
    mbarrier.wait(full.index(n % SLOTS), (n // SLOTS) & 1)


@gluon.jit
def wait_empty(empty, n):
    """Wait until the slot of the n-th tile is free: at once in the first round through the ring."""
    SLOTS: gl.constexpr = empty.shape[0]
    mbarrier.wait(empty.index(n % SLOTS), ((n // SLOTS) & 1) ^ 1)


@gluon.jit
def turn_wait(who: gl.constexpr):
    """Wait for the turn of warpgroup ``who``; warpgroups take turns through named barriers of two each."""
    gl.inline_asm_elementwise(
        "bar.sync $1, 256; mov.u32 $0, 0;", "=r,r", [gl.to_tensor(FIRST_TURN + who)], gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def turn_give(who: gl.constexpr):
    """Give the turn to warpgroup ``who``."""
    gl.inline_asm_elementwise(
        "bar.arrive $1, 256; mov.u32 $0, 0;", "=r,r", [gl.to_tensor(FIRST_TURN + who)], gl.int32, is_pure=False, pack=1
    )
