"""What the attention kernels take of a multiprocessor, compiled for a target without a GPU."""

from __future__ import annotations

from typing import Any

import torch

from lit_eff.kernels.attention.backward import backward_launches
from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.kernels.attention.forward import forward_launch
from lit_eff.profiling.compiled import CompiledResources, compile_launch


def compiled_resources(
    head_dim: int,
    dtype: torch.dtype,
    capability: int,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    documents: bool = False,
    starts: bool = False,
) -> list[CompiledResources]:
    """Shared memory, registers and spills of the forward and the three backward kernels, in launch order.

    Args:
        head_dim: 16 to 128.
        dtype: float16, bfloat16 or float32.
        capability: 10 * major + minor of the target; its block sizes are used.
        causal, window, softcap, documents, starts: which form of the kernels, as in `attention`.

    Raises:
        UserError: if this process runs Triton's interpreter.
    """
    tensors: dict[str, Any] = {"dtype": dtype, "device": "meta"}
    ids_BT = torch.empty(4, 1024, dtype=torch.int64, device="meta") if documents else None
    starts_B = torch.empty(4, dtype=torch.int64, device="meta") if starts else None
    q_BTHD = torch.empty(4, 1024, 16, head_dim, **tensors)
    k_BSKD = torch.empty(4, 1024, 4, head_dim, **tensors)
    lse_BHT = torch.empty(4, 16, 1024, device="meta")
    call = AttentionCall(
        q_BTHD, k_BSKD, k_BSKD, ids_BT, ids_BT, starts_B, 0.125, causal or starts, window, softcap, capability
    )
    launches = [
        forward_launch(call, q_BTHD, lse_BHT),
        *backward_launches(call, q_BTHD, lse_BHT, q_BTHD, None, lse_BHT, q_BTHD, k_BSKD, k_BSKD),
    ]
    return [compile_launch(launch, capability) for launch in launches]
