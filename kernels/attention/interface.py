"""The public attention function: checks its arguments, says what the Triton form cannot do, calls the
operator.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_eff.errors import UserError

TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
if TRITON_INSTALLED:
    from lit_eff.kernels.attention import operator

MIN_HEAD_DIM, MAX_HEAD_DIM = 16, 128
MAX_GRID = 65_535  # CUDA's limit on the second and third grid dimensions: heads and batch


@dataclass(frozen=True)
class Support:
    """Whether the Triton form can run something and, if it cannot, one sentence on why. True when it can."""

    supported: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.supported


def supports(device: torch.device | str, *, head_dim: int, dtype: torch.dtype | None = None) -> Support:
    """Whether the Triton attention runs on ``device`` for this head dim and (if given) dtype.

    Every other feature (causal, window, softcap, documents, cached starts, any GQA ratio) is always there.
    """
    device = torch.device(device)
    if not TRITON_INSTALLED:
        return Support(False, "Triton is not installed (it is part of lit_eff[train], on Linux)")
    if not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM:
        return Support(False, _head_dim_fault(head_dim))
    if dtype not in (None, torch.float16, torch.bfloat16, torch.float32):
        return Support(False, f"dtype {dtype} is not float16, bfloat16 or float32")
    if operator.INTERPRETED:
        if dtype == torch.bfloat16:
            return Support(False, "Triton's interpreter computes bfloat16 products wrongly; use float32")
        return Support(True)
    if device.type != "cuda":
        return Support(
            False,
            f"the Triton kernel needs a CUDA device, not {device.type} (for tests on a CPU, set "
            "TRITON_INTERPRET=1 before lit_eff is imported)",
        )
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 0):
        return Support(False, f"{torch.cuda.get_device_name(device)} is older than sm_80 or not from NVIDIA")
    return Support(True)


def attention(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    documents_BT: Tensor | None = None,
    key_documents_BS: Tensor | None = None,
    starts_B: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact attention in one Triton kernel, differentiable, never holding the (T, S) scores in memory.

    Args:
        q_BTHD: queries; float16, bfloat16 or float32, any strides. H is a multiple of K.
        k_BSKD: keys, same dtype and device; D from 16 to 128.
        v_BSKD: values, the shape of the keys.
        causal: query t sees keys up to its own place, the last query standing at the last key.
        window: with ``causal``, a query sees itself and the ``window - 1`` keys before it.
        softcap: scores become ``softcap * tanh(scores / softcap)`` (after the scale).
        scale: factor on the scores; 1 / sqrt(D) by default.
        documents_BT: integer ids; a query sees only keys of its own id.
        key_documents_BS: the keys' ids; ``documents_BT`` by default.
        starts_B: integer; query t of row b stands at key slot ``starts_B[b] + t`` (a KV cache) and sees
            slots up to its own. Implies ``causal``.
        return_lse: also return the natural log-sum-exp of the scores; its gradient is supported.

    Returns:
        (B, T, H, D) in the dtype of ``q_BTHD``, contiguous; with ``return_lse`` also (B, H, T) float32. A
        query that sees no key yields zeros and -inf. Under autocast the inputs are cast to its dtype first.

    Raises:
        UserError: naming the argument that does not fit, or what the Triton form does not do here.

    Source: FlashAttention-2 (Dao 2023), Algorithms 1 and 2; gradients are deterministic.
    """
    if torch.is_autocast_enabled(q_BTHD.device.type):
        dtype = torch.get_autocast_dtype(q_BTHD.device.type)
        q_BTHD, k_BSKD, v_BSKD = q_BTHD.to(dtype), k_BSKD.to(dtype), v_BSKD.to(dtype)
    if documents_BT is not None and key_documents_BS is None:
        key_documents_BS = documents_BT
    check_shapes(q_BTHD, k_BSKD, v_BSKD)
    check_masks(q_BTHD, k_BSKD, causal, window, softcap, documents_BT, key_documents_BS, starts_B)
    support = supports(q_BTHD.device, head_dim=q_BTHD.shape[3], dtype=q_BTHD.dtype)
    if not support:
        raise UserError(f"Triton attention cannot run: {support.reason}; use attention_reference or SDPA")
    out_BTHD, lse_BHT = operator.attention_forward(
        q_BTHD,
        k_BSKD,
        v_BSKD,
        documents_BT,
        key_documents_BS,
        None if starts_B is None else starts_B.contiguous(),
        1 / math.sqrt(q_BTHD.shape[3]) if scale is None else float(scale),
        causal or starts_B is not None,
        window,
        softcap,
    )
    return (out_BTHD, lse_BHT) if return_lse else out_BTHD


def check_shapes(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> None:
    if q_BTHD.ndim != 4 or k_BSKD.ndim != 4:
        raise UserError(
            f"attention wants q (B, T, H, D) and k (B, S, K, D); got {_s(q_BTHD)} and {_s(k_BSKD)}"
        )
    if k_BSKD.shape != v_BSKD.shape:
        raise UserError(f"attention wants k and v of one shape; got {_s(k_BSKD)} and {_s(v_BSKD)}")
    batch, _, heads, head_dim = q_BTHD.shape
    kv_heads = k_BSKD.shape[2]
    if k_BSKD.shape[0] != batch or k_BSKD.shape[3] != head_dim:
        raise UserError(f"attention: q {_s(q_BTHD)} and k {_s(k_BSKD)} differ in batch or head dim")
    if kv_heads == 0 or heads % kv_heads:
        raise UserError(f"attention: {heads} query heads are not a multiple of {kv_heads} kv heads")
    if not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM:
        raise UserError(f"Triton attention cannot run: {_head_dim_fault(head_dim)}")
    if 0 in q_BTHD.shape or 0 in k_BSKD.shape:
        raise UserError(f"attention wants no empty dimension; got {_s(q_BTHD)} and {_s(k_BSKD)}")
    if batch > MAX_GRID or heads > MAX_GRID:
        raise UserError(f"attention: batch {batch} and heads {heads} may be at most {MAX_GRID} each")
    if not q_BTHD.dtype == k_BSKD.dtype == v_BSKD.dtype:
        raise UserError(
            f"attention wants one dtype; got q {q_BTHD.dtype}, k {k_BSKD.dtype}, v {v_BSKD.dtype}"
        )
    if not q_BTHD.device == k_BSKD.device == v_BSKD.device:
        raise UserError(
            f"attention wants one device; got q {q_BTHD.device}, k {k_BSKD.device}, v {v_BSKD.device}"
        )


def check_masks(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    causal: bool,
    window: int | None,
    softcap: float | None,
    documents_BT: Tensor | None,
    key_documents_BS: Tensor | None,
    starts_B: Tensor | None,
) -> None:
    if window is not None and (window < 1 or not (causal or starts_B is not None)):
        raise UserError(f"attention: window {window} must be at least 1 and needs causal=True or starts_B")
    if softcap is not None and not softcap > 0:
        raise UserError(f"attention: softcap {softcap} must be positive, or None for no cap")
    if key_documents_BS is not None and documents_BT is None:
        raise UserError("attention: key_documents_BS needs documents_BT")
    batch = q_BTHD.shape[0]
    for name, ids, shape in (
        ("documents_BT", documents_BT, (batch, q_BTHD.shape[1])),
        ("key_documents_BS", key_documents_BS, (batch, k_BSKD.shape[1])),
        ("starts_B", starts_B, (batch,)),
    ):
        if ids is None:
            continue
        if tuple(ids.shape) != shape:
            raise UserError(f"attention: {name} must have shape {shape}; got {_s(ids)}")
        if ids.dtype.is_floating_point or ids.dtype == torch.bool or ids.dtype.is_complex:
            raise UserError(f"attention: {name} must hold integers; got {ids.dtype}")
        if ids.device != q_BTHD.device:
            raise UserError(f"attention: {name} is on {ids.device}, q on {q_BTHD.device}")


def _head_dim_fault(head_dim: int) -> str:
    return f"head dim {head_dim} is outside {MIN_HEAD_DIM} to {MAX_HEAD_DIM}"


def _s(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
