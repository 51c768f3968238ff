"""Attention off the GPU: PyTorch's own where it can express the call, else the reference.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_eff.kernels.attention.paths import Path
from lit_eff.kernels.attention.reference import (
    attention_reference,
    each_sequence,
    slots_ahead,
    visible_keys,
)


def path_on_cpu(arguments: dict[str, Any], return_lse: bool) -> Path:
    """``sdpa``, or ``reference`` where scaled_dot_product_attention lacks something the call needs."""
    lacking = {
        "a softcap": arguments["softcap"] is not None,
        "sinks": arguments["sinks_H"] is not None,
        "seeded dropout": arguments["dropout_p"] > 0,
        "the log-sum-exp": return_lse,
    }
    missing = [name for name, wanted in lacking.items() if wanted]
    if missing:
        return Path("reference", f"no CUDA device, and PyTorch's fused attention lacks {', '.join(missing)}")
    return Path("sdpa", "no CUDA device: PyTorch's fused attention")


def attention_on_cpu(
    q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, arguments: dict[str, Any], path: Path, *, return_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Output and, if asked for, log-sum-exp; ``arguments`` are the operator's, packed sequences included."""
    scalars = ("causal", "window", "softcap", "scale", "dropout_p", "seed")
    options: dict[str, Any] = {name: arguments[name] for name in scalars}
    options |= {"sinks": arguments["sinks_H"], "alibi": arguments["alibi_H"]}
    attend = _sdpa if path.name == "sdpa" else attention_reference
    if arguments["cu_seqlens_q"] is not None:
        out_NHD, lse_HN = each_sequence(
            attend,
            (q_BTHD[0], k_BSKD[0], v_BSKD[0]),
            (arguments["cu_seqlens_q"], arguments["cu_seqlens_k"]),
            return_lse=return_lse,
            **options,
        )
        return out_NHD[None], None if lse_HN is None else lse_HN[None]
    rows = ("documents_BT", "key_documents_BS", "starts_B")
    options |= {name: arguments[name] for name in rows}
    result = attend(q_BTHD, k_BSKD, v_BSKD, return_lse=return_lse, **options)
    return result if isinstance(result, tuple) else (result, None)


def _sdpa(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    *,
    causal: bool,
    window: int | None,
    alibi: Tensor | None,
    scale: float,
    starts_B: Tensor | None = None,
    documents_BT: Tensor | None = None,
    key_documents_BS: Tensor | None = None,
    **_: Any,
) -> Tensor:
    queries, keys = q_BTHD.shape[1], k_BSKD.shape[1]
    square = causal and queries == keys and window is None and starts_B is None
    plain = square and documents_BT is None and alibi is None
    mask_BTS = None
    if not plain:
        mask_BTS = visible_keys(
            queries,
            keys,
            causal=causal,
            window=window,
            starts_B=starts_B,
            documents_BT=documents_BT,
            key_documents_BS=key_documents_BS,
        )
    bias, sees_any = None, None
    if mask_BTS is not None:
        # A row without keys may see all of them, lest it turn into NaN, and is set to zero at the end.
        sees_any = mask_BTS.any(dim=-1)
        bias = (mask_BTS | ~sees_any[..., None])[:, None]
    if alibi is not None:
        slopes = alibi.to(q_BTHD.dtype)[:, None, None]
        distances = slots_ahead(queries, keys, starts_B=starts_B)[:, None].abs()
        weights = -slopes * distances
        bias = weights if bias is None else weights.masked_fill(~bias, float("-inf"))
    out_BHTD = F.scaled_dot_product_attention(
        q_BTHD.transpose(1, 2),
        k_BSKD.transpose(1, 2),
        v_BSKD.transpose(1, 2),
        attn_mask=bias,
        is_causal=plain,
        scale=scale,
        enable_gqa=q_BTHD.shape[2] != k_BSKD.shape[2],
    )
    out_BTHD = out_BHTD.transpose(1, 2)
    return out_BTHD if sees_any is None else torch.where(sees_any[:, :, None, None], out_BTHD, 0.0)
