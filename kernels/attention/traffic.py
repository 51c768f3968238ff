"""The HBM traffic of the Triton forward kernel and of standard attention's, counted beside their formulas."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lit_eff.errors import UserError
from lit_eff.kernels.attention.checks import check_options, check_shapes
from lit_eff.kernels.attention.io_model import AttentionShape, standard_forward
from lit_eff.kernels.attention.tiles import forward_tiles
from lit_eff.kernels.device import TRITON_INSTALLED
from lit_eff.profiling.devices import get_device
from lit_eff.profiling.records import merge, together
from lit_eff.profiling.traffic import KernelTraffic, Number, Shape

if TYPE_CHECKING:
    from lit_eff.kernels.worker import Request

ELEMENT_BYTES = {"float16": 2, "float32": 4}
PAPER = "Dao et al. 2022, Algorithm 0: each matrix once"


def count_forward(
    batch: int,
    heads: int,
    kv_heads: int,
    queries: int,
    head_dim: int,
    causal: bool,
    *,
    keys: int | None = None,
    window: int | None = None,
    dtype: str = "float16",
    device: str = "H100 SXM",
) -> KernelTraffic:
    """HBM traffic of one forward call and of standard attention's three kernels, each counted and modelled.

    Works in any process, with or without a GPU: Triton reads TRITON_INTERPRET when a kernel is decorated,
    that is when its module is first imported, so unless this process imported it so, the count runs in a
    fresh one. A shape of (1, 4, 256, 32) takes about five seconds, most of it importing torch there.

    Args:
        batch, heads, kv_heads, queries, head_dim: sizes; ``keys`` equals ``queries`` by default.
        causal, window: as in :func:`lit_eff.kernels.attention.attention`.
        dtype: float16 or float32; bfloat16 moves the same bytes as float16 but the interpreter lacks it.
        device: of the device table, whose block sizes to use.

    Returns: A record with read, written and sector bytes, masked lanes and FLOPs; ``baseline`` is standard
        attention (Dao et al. 2022, Algorithm 0) on the same shapes, its three kernels under ``parts``. The
        paper's formula moves each matrix once and stands beside its distinct sectors.

    Raises:
        UserError: for arguments attention refuses, or if Triton is missing or its interpreter fails.
    """
    if dtype not in ELEMENT_BYTES:
        raise UserError(
            f"dtype {dtype!r} cannot be counted; expected float16 (bfloat16 moves as much) or float32"
        )
    keys = queries if keys is None else keys
    q_BTHD = torch.empty(batch, queries, heads, head_dim, device="meta")
    k_BSKD = torch.empty(batch, keys, kv_heads, head_dim, device="meta")
    check_shapes(q_BTHD, k_BSKD, k_BSKD)
    check_options(q_BTHD, window=window)
    known = get_device(device)
    if not TRITON_INSTALLED:
        raise UserError("counting attention traffic needs Triton (part of lit_eff[train], on Linux)")
    from lit_eff.kernels.attention.specimens import AttentionCase
    from lit_eff.kernels.attention.standard.specimens import StandardCase
    from lit_eff.kernels.worker import request

    sizes = (batch, queries, keys, heads, kv_heads, head_dim)
    case = AttentionCase(*sizes, causal=causal, window=window, dtype=dtype, backward=False)
    standard_case = StandardCase(*sizes, causal, window, dtype)
    (forward,), standard = _count(
        [request("attention", case, device), request("standard_attention", standard_case, device)]
    )
    shape = AttentionShape(*sizes, ELEMENT_BYTES[dtype], causal, window)
    described: dict[str, int | str | bool] = {
        "batch": batch,
        "heads": heads,
        "kv_heads": kv_heads,
        "queries": queries,
        "keys": keys,
        "head_dim": head_dim,
        "causal": causal,
        "dtype": dtype,
        "device": known.name,
    }
    if window is not None:
        described["window"] = window
    tiles = forward_tiles(head_dim, shape.element_bytes, known.capability)
    return replace(
        forward,
        shape={**described, "block_m": tiles.block_m, "block_n": tiles.block_n},
        baseline=_standard(described, shape, standard),
    )


def _count(requests: list[Request]) -> list[list[KernelTraffic]]:
    from lit_eff.kernels.attention.operator import INTERPRETED
    from lit_eff.kernels.worker import in_fresh_process, records

    if not INTERPRETED:
        return in_fresh_process("count", requests)
    with torch.random.fork_rng(devices=[]):
        return [records("count", each) for each in requests]


def _standard(described: Shape, shape: AttentionShape, parts: list[KernelTraffic]) -> KernelTraffic:
    """Standard attention: the sums of its kernels, with the paper's formula beside their sectors."""
    record = together("standard attention", described, [replace(part, shape=described) for part in parts])
    formula = standard_forward(shape)
    paper = {
        "read_sector_bytes": (Number(formula.read_bytes, "modelled", PAPER),),
        "written_sector_bytes": (Number(formula.written_bytes, "modelled", PAPER),),
    }
    return replace(record, numbers=merge(record.numbers, paper))
