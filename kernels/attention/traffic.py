"""The HBM traffic of the Triton forward kernel and of standard attention's, counted beside their formulas."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import torch

from lit_eff.errors import UserError
from lit_eff.kernels.attention.checks import check_options, check_shapes
from lit_eff.kernels.attention.io_model import (
    AttentionShape,
    forward_flops,
    standard_forward,
)
from lit_eff.kernels.attention.standard.traffic_model import standard_traffic
from lit_eff.kernels.attention.tiles import forward_tiles
from lit_eff.kernels.attention.traffic_model import forward_traffic
from lit_eff.kernels.device import TRITON_INSTALLED
from lit_eff.profiling.modelled import Traffic
from lit_eff.profiling.traffic import KernelTraffic, Number, Shape

ELEMENT_BYTES = {"float16": 2, "float32": 4}
COUNTED = (
    "read_bytes",
    "written_bytes",
    "atomic_bytes",
    "read_sector_bytes",
    "written_sector_bytes",
    "masked_lanes",
)
FORWARD = "attention_forward_kernel"
Counts = dict[str, int]  # by the names of COUNTED


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
    capability: int = 90,
) -> KernelTraffic:
    """HBM traffic of one forward call and of standard attention's three kernels, each counted and modelled.

    Works in any process, with or without a GPU: Triton reads TRITON_INTERPRET when a kernel is decorated,
    that is when its module is first imported, so unless this process imported it so, the count runs in a
    fresh one. A shape of (1, 4, 256, 32) takes about five seconds, most of it importing torch there.

    Args:
        batch, heads, kv_heads, queries, head_dim: sizes; ``keys`` equals ``queries`` by default.
        causal, window: as in :func:`lit_eff.kernels.attention.attention`.
        dtype: float16 or float32; bfloat16 moves the same bytes as float16 but the interpreter lacks it.
        capability: whose block sizes to use, 10 * major + minor (80 is the A100, 90 the H100).

    Returns: A record with read, written and sector bytes, masked lanes and FLOPs; ``baseline`` is standard
        attention (Dao et al. 2022, Algorithm 0) on the same tensors, its three kernels under ``parts``. The
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
    request: dict[str, Any] = {
        "batch": batch,
        "heads": heads,
        "kv_heads": kv_heads,
        "queries": queries,
        "keys": keys,
        "head_dim": head_dim,
        "causal": causal,
        "window": window,
        "dtype": dtype,
        "capability": capability,
    }
    if not TRITON_INSTALLED:
        raise UserError("counting attention traffic needs Triton (part of lit_eff[train], on Linux)")
    from lit_eff.kernels.attention.operator import INTERPRETED

    counts = _count(request) if INTERPRETED else _count_in_subprocess(request)
    shape = AttentionShape(
        batch, queries, keys, heads, kv_heads, head_dim, ELEMENT_BYTES[dtype], causal, window
    )
    description: Shape = {key: value for key, value in request.items() if value is not None}
    baseline = _standard(description, shape, counts)
    tiles = forward_tiles(head_dim, shape.element_bytes, capability)
    description = {**description, "block_m": tiles.block_m, "block_n": tiles.block_n}
    modelled = forward_traffic(shape, tiles)
    numbers = _numbers(counts[FORWARD], modelled, "traffic_model.forward_traffic")
    numbers["flops"] = (Number(forward_flops(shape), "modelled", "4 D a visible query-key pair"),)
    return KernelTraffic(FORWARD, description, numbers, baseline)


def _numbers(counts: Counts, modelled: Traffic, formula: str) -> dict[str, tuple[Number, ...]]:
    """Every count, with the formula's bytes beside those requested."""
    numbers: dict[str, tuple[Number, ...]] = {
        name: (Number(value, "counted", "Triton interpreter"),) for name, value in counts.items()
    }
    numbers["read_bytes"] += (Number(modelled.read_bytes, "modelled", formula),)
    numbers["written_bytes"] += (Number(modelled.written_bytes, "modelled", formula),)
    return numbers


def _standard(description: Shape, shape: AttentionShape, counts: dict[str, Counts]) -> KernelTraffic:
    """Standard attention: each of its kernels, and their sums beside the paper's formula."""
    models = standard_traffic(shape)
    detail = "standard.traffic_model"
    parts = tuple(
        KernelTraffic(name, description, _numbers(counts[name], modelled, detail))
        for name, modelled in models.items()
    )
    together = {name: sum(counts[kernel][name] for kernel in models) for name in COUNTED}
    modelled = Traffic(
        {kernel: traffic.read_bytes for kernel, traffic in models.items()},
        {kernel: traffic.written_bytes for kernel, traffic in models.items()},
    )
    numbers = _numbers(together, modelled, detail)
    formula, paper = standard_forward(shape), "Dao et al. 2022, Algorithm 0: each matrix once"
    numbers["read_sector_bytes"] += (Number(formula.read_bytes, "modelled", paper),)
    numbers["written_sector_bytes"] += (Number(formula.written_bytes, "modelled", paper),)
    pairs = shape.batch * shape.heads * shape.queries * shape.keys
    numbers["flops"] = (Number(4 * shape.head_dim * pairs, "modelled", "4 D a pair, hidden ones too"),)
    return KernelTraffic("standard attention", description, numbers, parts=parts)


def _count(request: dict[str, Any]) -> dict[str, Counts]:
    """Counts by kernel, of one forward and one standard attention on the same tensors."""
    from lit_eff.kernels.attention.call import AttentionCall
    from lit_eff.kernels.attention.forward import forward_launches
    from lit_eff.kernels.attention.standard import standard_launches
    from lit_eff.profiling.counted import count_traffic

    dtype = getattr(torch, request["dtype"])
    generator = torch.Generator().manual_seed(0)
    shapes = [(request["queries"], request["heads"])] + 2 * [(request["keys"], request["kv_heads"])]
    q_BTHD, k_BSKD, v_BSKD = (
        torch.randn(request["batch"], rows, heads, request["head_dim"], generator=generator).to(dtype)
        for rows, heads in shapes
    )
    call = AttentionCall(
        q_BTHD,
        k_BSKD,
        v_BSKD,
        None,
        None,
        None,
        1.0,
        request["causal"],
        request["window"],
        None,
        target=request["capability"],
    )
    lse_BHT = torch.empty(request["batch"], request["heads"], request["queries"])
    out_BTHD = torch.empty_like(q_BTHD)
    scores_BHTS, weights_BHTS = (torch.empty(*lse_BHT.shape, request["keys"], dtype=dtype) for _ in range(2))
    launches = [
        *forward_launches(call, out_BTHD, lse_BHT),
        *standard_launches(call, scores_BHTS, weights_BHTS, out_BTHD),
    ]
    with count_traffic() as counts:
        for launch in launches:
            launch.run()
    return {count.kernel: {name: getattr(count, name) for name in COUNTED} for count in counts}


def _count_in_subprocess(request: dict[str, Any]) -> dict[str, Counts]:
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(request)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"counting attention traffic in Triton's interpreter failed: {last}")
    counts: dict[str, Counts] = json.loads(done.stdout.splitlines()[-1])
    return counts


if __name__ == "__main__":
    print(json.dumps(_count(json.loads(sys.argv[1]))))
