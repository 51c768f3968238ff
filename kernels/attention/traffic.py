"""The HBM traffic of the Triton forward kernel, counted in the interpreter, beside its formula."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import torch

from lit_eff.errors import UserError
from lit_eff.kernels.attention.interface import TRITON_INSTALLED, check_masks, check_shapes
from lit_eff.kernels.attention.io_model import (
    AttentionShape,
    Traffic,
    forward_flops,
    standard_forward,
)
from lit_eff.kernels.attention.tiles import forward_tiles
from lit_eff.kernels.attention.traffic_model import forward_traffic
from lit_eff.profiling.traffic import KernelTraffic, Number

ELEMENT_BYTES = {"float16": 2, "float32": 4}


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
    """HBM traffic of one forward call: counted in the interpreter, modelled, and standard attention's.

    Works in any process, with or without a GPU: Triton reads TRITON_INTERPRET when a kernel is decorated,
    that is when its module is first imported, so unless this process imported it so, the count runs in a
    fresh one. A shape of (1, 4, 256, 32) takes about five seconds, most of it importing torch there.

    Args:
        batch, heads, kv_heads, queries, head_dim: sizes; ``keys`` equals ``queries`` by default.
        causal, window: as in :func:`lit_eff.kernels.attention.attention`.
        dtype: float16 or float32; bfloat16 moves the same bytes as float16 but the interpreter lacks it.
        capability: whose block sizes to use, 10 * major + minor (80 is the A100, 90 the H100).

    Returns: A record with read, written and sector bytes, masked lanes and FLOPs; ``baseline`` is standard
        attention (Dao et al. 2022, Algorithm 0), modelled.

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
    check_masks(q_BTHD, k_BSKD, causal, window, None, None, None, None)
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
    tiles = forward_tiles(head_dim, shape.element_bytes, capability)
    modelled = forward_traffic(shape, tiles)
    numbers: dict[str, tuple[Number, ...]] = {
        name: (Number(value, "counted", "Triton interpreter"),) for name, value in counts.items()
    }
    numbers["read_bytes"] += (Number(modelled.read_bytes, "modelled", "traffic_model.forward_traffic"),)
    numbers["written_bytes"] += (Number(modelled.written_bytes, "modelled", "traffic_model.forward_traffic"),)
    numbers["flops"] = (Number(forward_flops(shape), "modelled", "4 D a visible query-key pair"),)
    description: dict[str, int | str | bool] = {
        key: value for key, value in request.items() if value is not None
    }
    description |= {"block_m": tiles.block_m, "block_n": tiles.block_n}
    return KernelTraffic(
        "attention_forward_kernel", description, numbers, _standard(description, standard_forward(shape))
    )


def _standard(description: dict[str, int | str | bool], traffic: Traffic) -> KernelTraffic:
    detail = "FlashAttention (Dao et al. 2022), Algorithm 0"
    numbers: dict[str, tuple[Number, ...]] = {
        "read_bytes": (Number(traffic.read_bytes, "modelled", detail),),
        "written_bytes": (Number(traffic.written_bytes, "modelled", detail),),
    }
    return KernelTraffic("standard attention", description, numbers)


def _count(request: dict[str, Any]) -> dict[str, int]:
    from lit_eff.kernels.attention.call import AttentionCall
    from lit_eff.kernels.attention.forward import forward_launch
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
    with count_traffic() as launches:
        forward_launch(call, torch.empty_like(q_BTHD), lse_BHT).run()
    (count,) = launches
    names = ("read_bytes", "written_bytes", "atomic_bytes", "read_sector_bytes", "written_sector_bytes")
    return {name: getattr(count, name) for name in (*names, "masked_lanes")}


def _count_in_subprocess(request: dict[str, Any]) -> dict[str, int]:
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
    counts: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return counts


if __name__ == "__main__":
    print(json.dumps(_count(json.loads(sys.argv[1]))))
