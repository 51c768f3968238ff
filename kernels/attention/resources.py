"""What the attention kernels take of a multiprocessor, compiled for a target without a GPU."""

from __future__ import annotations

import torch

from lit_eff.kernels.attention.backward import backward_launches
from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.kernels.attention.forward import forward_launches
from lit_eff.kernels.attention.io_model import AttentionShape
from lit_eff.profiling.compiled import CompiledResources, compile_launch


def compiled_resources(
    shape: AttentionShape,
    dtype: torch.dtype,
    capability: int,
    *,
    softcap: float | None = None,
    packed: bool = False,
) -> list[CompiledResources]:
    """Shared memory, registers and spills of the forward and the three backward kernels, in launch order.

    Args:
        shape: which form of the kernels; its element and id sizes are not used. Triton compiles sizes of 1
            and multiples of 16 apart from the rest.
        dtype: float16, bfloat16 or float32.
        capability: 10 * major + minor of the target; its block sizes are used.
        softcap: as in :func:`lit_eff.kernels.attention.attention`; the value makes no difference.
        packed: the form for packed sequences; they make no difference either.

    Raises:
        UserError: if this process runs Triton's interpreter.
    """
    with torch.device("meta"):
        q_BTHD = torch.empty(shape.batch, shape.queries, shape.heads, shape.head_dim, dtype=dtype)
        k_BSKD = torch.empty(shape.batch, shape.keys, shape.kv_heads, shape.head_dim, dtype=dtype)
        lse_BHT = torch.empty(shape.batch, shape.heads, shape.queries)
        documents_BT = torch.empty(shape.batch, shape.queries, dtype=torch.int64)
        key_documents_BS = torch.empty(shape.batch, shape.keys, dtype=torch.int64)
        starts_B = torch.empty(shape.batch, dtype=torch.int64)
        per_head = torch.empty(shape.heads)
        seed = torch.empty(1, dtype=torch.int64)
        cu_seqlens = torch.empty(3, dtype=torch.int32)
    call = AttentionCall(
        q_BTHD,
        k_BSKD,
        k_BSKD,
        documents_BT if shape.documents is not None else None,
        key_documents_BS if shape.documents is not None else None,
        starts_B if shape.starts is not None else None,
        shape.head_dim**-0.5,
        shape.is_causal,
        shape.window,
        softcap,
        target=capability,
        sinks_H=per_head if shape.sinks else None,
        alibi_H=per_head if shape.alibi else None,
        dropout_p=0.1 if shape.dropout else 0.0,
        seed=seed,
        cu_seqlens_q=cu_seqlens if packed else None,
        cu_seqlens_k=cu_seqlens if packed else None,
        max_seqlen_q=shape.queries,
        max_seqlen_k=shape.keys,
    )
    launches = [
        *forward_launches(call, q_BTHD, lse_BHT),
        *backward_launches(call, q_BTHD, lse_BHT, q_BTHD, None, lse_BHT, q_BTHD, k_BSKD, k_BSKD),
    ]
    return [compile_launch(launch, capability) for launch in launches]
