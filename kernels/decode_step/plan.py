"""How a decode step's work is cut: by the model's shape and the device, never by rows or lengths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lit_eff.errors import UserError

Form = Literal["persistent", "launches"]
ROW_TILE = 16  # rows a product takes, however many there are: one matrix instruction


@dataclass(frozen=True)
class Ahead:
    """Bytes that each program reads ahead of a weight before it waits to use it."""

    qkv: int = 49152
    output: int = 32768
    gate_up: int = 49152
    down: int = 81920


@dataclass(frozen=True)
class Plan:
    """What changes bits: lanes, chunks, keys, warp keys, programs; the rest does not.

    ``form``: one launch of ``programs`` programs that wait for one another, or a launch a phase, of as many.
    A step of a product takes ``lanes * chunk`` channels, that of gates and ups (``_inner``) has its own cut.
    ``keys`` are the slots of a chunk of attention, ``warp_keys`` those that one of its four warps takes at a
    time. The blocks are the most rows of a weight that a tile holds. Stages are the loop steps whose loads
    are under way: of products, of gates and ups, of attention.
    """

    form: Form
    programs: int
    keys: int = 512
    warp_keys: int = 16
    lanes: int = 4
    chunk: int = 64
    lanes_inner: int = 4
    chunk_inner: int = 64
    block_qkv: int = 32
    block_hidden: int = 16
    block_inner: int = 32
    num_warps: int = 4
    num_stages: int = 4
    stages_inner: int = 4
    stages_keys: int = 3
    ahead: Ahead = Ahead()


def plan_of(
    qkv_pairs: int, channels: int, inner: int, processors: int, capability: int, per_processor: int = 1
) -> Plan:
    """Tiles hold a program's share, of 32 rows at the most but for wide gates and ups.

    Ampere lacks the reading ahead in bulk. On Hopper the numbers are measured (docs/lab_log.md).
    """
    programs = processors * per_processor
    plan = Plan(
        "persistent",
        programs,
        block_qkv=block(2 * qkv_pairs, programs),
        block_hidden=block(channels, programs),
        block_inner=block(2 * inner, programs),
    )
    if capability < 90:
        return replace(plan, ahead=Ahead(0, 0, 0, 0))
    if -(-2 * inner // programs) > 64:  # wide shares: one tile, whose rows the warps share out
        plan = replace(plan, lanes_inner=1, chunk_inner=64, block_inner=128, num_stages=8, stages_inner=8)
    return plan


def block(outputs: int, programs: int) -> int:
    """16 or 32 rows of a weight."""
    return 16 if -(-outputs // programs) <= 16 else 32


def check_shape(heads: int, kv_heads: int, head_dim: int, channels: int, inner: int) -> None:
    """Raises UserError for what the kernel's tiles and 16-byte reads cannot hold."""
    if head_dim & (head_dim - 1) or not 16 <= head_dim <= 256:
        raise UserError(f"decode_step: head dim {head_dim} is not a power of two from 16 to 256")
    if heads % kv_heads:
        raise UserError(f"decode_step: {heads} heads are not a multiple of {kv_heads} kv heads")
    for name, size in (("model dim", channels), ("MLP inner width", inner)):
        if size % 16:
            raise UserError(f"decode_step: {name} {size} is not a multiple of 16")
