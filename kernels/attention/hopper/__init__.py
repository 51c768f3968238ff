"""Attention for Hopper in Gluon: copies by the TMA engine, matrix products by warpgroups, each warp one role.

Imported only where Triton has Gluon; `lit_eff.kernels.attention.paths` decides who comes here, from the
reasons that `supported` gives.
"""

from __future__ import annotations

import torch

from lit_eff.kernels.attention.call import AttentionCall
from lit_eff.kernels.attention.hopper.pipeline import obstacle_of

HEAD_DIMS = (64, 128)
DTYPES = (torch.float16, torch.bfloat16)


def forward_supported(call: AttentionCall) -> str | None:
    """Why the Hopper forward kernel cannot take a call; None if it can."""
    if call.q_BTHD.dtype not in DTYPES:
        return f"{call.q_BTHD.dtype} rather than float16 or bfloat16"
    if call.head_dim not in HEAD_DIMS:
        return f"head dim {call.head_dim} rather than {' or '.join(map(str, HEAD_DIMS))}"
    if 0 in call.q_BTHD.shape or 0 in call.k_BSKD.shape:
        return "an empty tensor"
    if call.scale <= 0:
        return f"scale {call.scale:g} is not positive"
    extras = {
        "documents": call.documents_BT is not None,
        "packed sequences": call.cu_seqlens_q is not None,
        "ALiBi": call.alibi_H is not None,
        "dropout": call.dropout_p > 0,
    }
    for name, is_there in extras.items():
        if is_there:
            return f"it has no {name}"
    tensors = {"q": call.q_BTHD, "k": call.k_BSKD, "v": call.v_BSKD}
    obstacles = (obstacle_of(name, tensor) for name, tensor in tensors.items())
    return next((obstacle for obstacle in obstacles if obstacle is not None), None)


def supported(call: AttentionCall) -> str | None:
    """Why the Hopper kernels cannot take a call forward and backward; None if they can."""
    extras = {
        "window": call.window is not None,
        "softcap": call.softcap is not None,
        "sinks": call.sinks_H is not None,
        "query offsets": call.starts_B is not None,
    }
    for name, is_there in extras.items():
        if is_there:
            return f"its backward kernel has no {name}"
    return forward_supported(call)
