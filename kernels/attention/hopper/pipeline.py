"""The pieces of a Hopper pipeline: tiles that the copy engine (TMA) moves, and their rings.

A ring is a row of shared-memory slots with two mbarriers each: ``full`` counts the bytes that arrive,
``empty`` the partitions that have read them. The n-th tile of a ring lies in slot n % slots; the barriers'
phase bit flips with every round through the ring.

Shapes: B batch, T query length, H query heads, D head dim.
Prefixes: i_ index, s_ shared memory, d_ TMA descriptor.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from lit_eff.kernels.device import multiprocessors as device_multiprocessors

ELEMENTS = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16, torch.float32: gl.float32}


@functools.cache
def _tile_layout(block: tuple[int, ...], dtype: torch.dtype) -> Any:
    return gl.NVMMASharedLayout.get_default_for(list(block), ELEMENTS[dtype])


def _descriptor(tensor: Tensor, strides: list[int], block: tuple[int, ...]) -> Any:
    """A TMA descriptor; the class's constructor checks everything again and costs more than a launch."""
    tiles = object.__new__(TensorDescriptor)
    tiles.base = tensor
    tiles.shape = list(tensor.shape)
    tiles.strides = strides
    tiles.block_shape = list(block)
    tiles.layout = _tile_layout(block, tensor.dtype)
    return tiles


def row_tiles(tensor_BTHD: Tensor, rows: int, columns: int | None = None) -> Any:
    """A TMA descriptor of a (B, T, H, D) tensor whose tiles are ``rows`` rows of one head, (1, rows, 1, D).

    With ``columns``, of so many of their elements: (1, rows, 1, columns). Rows past the end read as 0 and are
    not written. `obstacle_of` tells which tensors have a descriptor.
    """
    outer = zip(tensor_BTHD.shape[:3], tensor_BTHD.stride(), strict=False)
    # The stride of an axis of one element may be anything, but the copy engine wants multiples of 16 bytes.
    strides = [stride if size > 1 else 16 for size, stride in outer]
    return _descriptor(tensor_BTHD, [*strides, 1], (1, rows, 1, columns or tensor_BTHD.shape[3]))


def flat_tiles(tensor: Tensor, *block: int) -> Any:
    """A TMA descriptor of a contiguous tensor of as many axes as ``block``, a tile's shape, has."""
    return _descriptor(tensor, list(tensor.stride()), block)


def obstacle_of(name: str, tensor_BTHD: Tensor) -> str | None:
    """Why the copy engine cannot read or write this tensor; None if it can."""
    step = 16 // tensor_BTHD.element_size()
    *outer, last = tensor_BTHD.stride()
    axes = list(zip(tensor_BTHD.shape[:3], outer, strict=True))
    if tensor_BTHD.data_ptr() % 16:
        return f"{name} does not start at a multiple of 16 bytes"
    if last != 1:
        return f"the head dim of {name} is not contiguous"
    if any(size > 1 and (stride % step or stride <= 0) for size, stride in axes):
        return f"the strides {tuple(tensor_BTHD.stride())} of {name} are not positive multiples of 16 bytes"
    return None


def multiprocessors(device: torch.device) -> int:
    """How many programs run at once, one a multiprocessor; the H100's number where there is no device."""
    return device_multiprocessors(device, 132)


class Ring(NamedTuple):
    """Shared memory of tiles (slots, 1, rows, 1, D) with the barriers of every slot."""

    tiles: Any
    full: Any
    empty: Any


@gluon.jit
def allocate_tiles(d_rows, SLOTS: gl.constexpr):
    """Shared memory for ``SLOTS`` tiles of a descriptor."""
    shape: gl.constexpr = [SLOTS] + d_rows.block_type.shape  # noqa: RUF005
    return gl.allocate_shared_memory(d_rows.dtype, shape, d_rows.layout)


@gluon.jit
def allocate_ring(d_rows, SLOTS: gl.constexpr, READERS: gl.constexpr):
    """A ring of a descriptor's tiles, each read by ``READERS`` partitions."""
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(SLOTS):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=READERS)
    return Ring(allocate_tiles(d_rows, SLOTS), full, empty)


@gluon.jit
def matrix_of(ring, n):
    """The n-th tile as the matrix (rows, D) that it is."""
    SLOTS: gl.constexpr = ring.tiles.shape[0]
    return ring.tiles.index(n % SLOTS).reshape([ring.tiles.shape[2], ring.tiles.shape[4]])


@gluon.jit
def load_next(ring, n, d_rows, i_b, first, i_h):
    """Start copying rows of one head, from ``first`` on, as the n-th tile, once its slot is free."""
    SLOTS: gl.constexpr = ring.tiles.shape[0]
    full = ring.full.index(n % SLOTS)
    mbarrier.wait(ring.empty.index(n % SLOTS), ((n // SLOTS) & 1) ^ 1)
    mbarrier.expect(full, d_rows.block_type.nbytes)
    tma.async_copy_global_to_shared(d_rows, [i_b, first, i_h, 0], full, ring.tiles.index(n % SLOTS))


@gluon.jit
def wait_full(ring, n):
    """Wait for the n-th tile."""
    SLOTS: gl.constexpr = ring.full.shape[0]
    mbarrier.wait(ring.full.index(n % SLOTS), (n // SLOTS) & 1)


@gluon.jit
def release(ring, n):
    """This partition has read the n-th tile."""
    SLOTS: gl.constexpr = ring.empty.shape[0]
    mbarrier.arrive(ring.empty.index(n % SLOTS), count=1)


@gluon.jit
def zero_here():
    """A 0 that the compiler cannot see through: what comes of it is computed here, not kept from before."""
    return gl.inline_asm_elementwise("mov.b32 $0, 0;", "=r", [], gl.int32, is_pure=False, pack=1)
