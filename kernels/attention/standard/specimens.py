"""Standard attention's three launches with their modelled bytes.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch

from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.kernels.attention.io_model import AttentionShape
from lit_eff.kernels.attention.standard.launches import standard_launches
from lit_eff.kernels.attention.standard.traffic_model import standard_flops, standard_traffic
from lit_eff.kernels.catalogue import Operation
from lit_eff.profiling.modelled import ModelledLaunch


@dataclass(frozen=True)
class StandardCase:
    """One call."""

    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool = False
    window: int | None = None
    dtype: str = "float16"


def launches(case: StandardCase, device: torch.device, capability: int) -> list[ModelledLaunch]:
    """Scores, weights, output; the tiles are the same for every ``capability``."""
    dtype = getattr(torch, case.dtype)
    sizes = [(case.queries, case.heads)] + 2 * [(case.keys, case.kv_heads)]
    q_BTHD, k_BSKD, v_BSKD = (
        torch.randn(case.batch, *size, case.head_dim, dtype=dtype, device=device) for size in sizes
    )
    call = AttentionCall(
        q_BTHD,
        k_BSKD,
        v_BSKD,
        None,
        None,
        None,
        case.head_dim**-0.5,
        case.causal,
        case.window,
        None,
        target=capability,
    )
    scores_BHTS, weights_BHTS = (
        torch.empty(case.batch, case.heads, case.queries, case.keys, dtype=dtype, device=device)
        for _ in range(2)
    )
    shape = AttentionShape(
        case.batch, case.queries, case.keys, case.heads, case.kv_heads, case.head_dim, dtype.itemsize
    )
    traffic, flops = standard_traffic(shape), standard_flops(shape)
    return [
        ModelledLaunch(launch, traffic[launch.name], flops[launch.name])
        for launch in standard_launches(call, scores_BHTS, weights_BHTS, torch.empty_like(q_BTHD))
    ]


def draw(random: Random) -> StandardCase:
    kv_heads = random.randint(1, 2)
    return StandardCase(
        random.randint(1, 2),
        random.randint(1, 150),
        random.randint(1, 150),
        kv_heads * random.randint(1, 2),
        kv_heads,
        random.choice((16, 24, 32, 48, 128)),
        causal=random.random() < 0.5,
        window=random.choice((None, random.randint(1, 100))),
        dtype=random.choice(("float16", "float32")),
    )


OPERATIONS = (
    Operation(
        name="standard_attention",
        case=StandardCase,
        small=(
            StandardCase(1, 1, 1, 1, 1, 128, causal=True),
            StandardCase(1, 128, 128, 2, 2, 64),
            StandardCase(2, 70, 130, 4, 2, 48, causal=True),
            StandardCase(1, 130, 70, 2, 1, 24, causal=True),  # the first 60 queries see nothing
            StandardCase(1, 100, 100, 2, 2, 32, causal=True, window=30),
            StandardCase(1, 90, 100, 1, 1, 16, window=20),
            StandardCase(1, 1, 9000, 1, 1, 16),  # its rows are longer than the softmax tile
            StandardCase(1, 40, 33, 2, 1, 24, dtype="float32"),
            StandardCase(3, 5, 7, 1, 1, 16, causal=True),
            StandardCase(1, 129, 65, 1, 1, 64, dtype="float32"),
            StandardCase(2, 64, 64, 3, 3, 80),
            StandardCase(1, 33, 17, 8, 2, 16, window=1),
        ),
        typical=StandardCase(4, 4096, 4096, 16, 16, 64, causal=True, dtype="bfloat16"),
        draw=draw,
        launches=launches,
    ),
)
