"""Which attention runs, chosen once and with a reason; and what it needs, worked out once per forward pass.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_eff.errors import UserError, nearest
from lit_eff.kernels.attention import attention, attention_reference, supports
from lit_eff.models.config import AttentionBackend, ModelConfig

BACKENDS = ("auto", "triton", "sdpa", "reference")
# Below this mean length (tokens), one small attention call per document costs more than one masked call. On
# one core, (8, 512) tokens and documents of 8, 32 and 256 tokens took 0.7, 0.2 and 0.5 of the masked time.
SEGMENT_WORTHWHILE = 8
HALF = (torch.float16, torch.bfloat16)  # Triton's float32 products are exact, and slow: no tensor cores


@dataclass(frozen=True)
class BackendChoice:
    """``name`` is ``triton``, ``sdpa`` or ``reference``; ``reason`` is a phrase for people.

    ``masked`` is what runs instead where documents or a window hide keys.
    """

    name: AttentionBackend
    reason: str
    masked: AttentionBackend | None = None


def choose_backend(
    config: ModelConfig, device: torch.device | str, requested: AttentionBackend = "auto"
) -> BackendChoice:
    """Choose the attention implementation for a model on ``device``.

    Raises:
        UserError: the one asked for cannot run here, with the reason; ``auto`` never raises.
    """
    if requested not in BACKENDS:
        raise UserError(f"unknown attention backend {requested!r}{nearest(requested, BACKENDS)}")
    device = torch.device(device)
    obstacles = {
        "triton": _triton_obstacle(config, device),
        "sdpa": _sdpa_obstacle(config),
        "reference": None,
    }
    if requested != "auto":
        obstacle = obstacles[requested]
        if obstacle is not None:
            raise UserError(f"attention backend {requested!r} cannot run here: {obstacle}; try 'auto'")
        return BackendChoice(requested, "asked for")
    # Triton's interpreter can stand in for a GPU, but is far too slow to be chosen unasked.
    obstacle = obstacles["triton"] if device.type == "cuda" else f"no CUDA device, but {device.type}"
    if obstacles["sdpa"] is None:
        reason = f"PyTorch's fused attention on {device.type}"
        if obstacle is not None:
            return BackendChoice("sdpa", reason)
        reason += "; the Triton kernels where documents or a window hide keys, which it masks and they skip"
        return BackendChoice("sdpa", reason, masked="triton")
    if obstacle is None:
        return BackendChoice("triton", f"not sdpa: {obstacles['sdpa']}")
    return BackendChoice("reference", f"not sdpa: {obstacles['sdpa']}; not triton: {obstacle}")


def _sdpa_obstacle(config: ModelConfig) -> str | None:
    if config.attention_softcap is not None:
        return "scaled_dot_product_attention has no softcap"
    return None


def _triton_obstacle(config: ModelConfig, device: torch.device) -> str | None:
    support = supports(device, head_dim=config.head_size)
    return None if support else support.reason


@dataclass(frozen=True)
class AttentionPlan:
    """What every layer of one forward pass shares: built once, read by all.

    Attributes:
        mask: (B or 1, 1, T, S), 0 or -inf, added to scores (sdpa); ``None`` when nothing but causality hides.
        segments: lengths of the documents laid end to end over the flattened batch (sdpa on a CPU): each is
            attended on its own, which skips the masked scores instead of computing them.
        documents_BT, starts_B: passed on to the triton and reference forms, which mask by themselves.
    """

    backend: AttentionBackend
    causal: bool
    window: int | None
    softcap: float | None
    mask: Tensor | None = None
    segments: tuple[int, ...] | None = None
    documents_BT: Tensor | None = None
    starts_B: Tensor | None = None


def plan_attention(
    config: ModelConfig,
    backend: AttentionBackend,
    hidden_BTC: Tensor,
    *,
    documents_BT: Tensor | None = None,
    starts_B: Tensor | None = None,
    key_slots: int | None = None,
    static: bool = False,
    masked: AttentionBackend | None = None,
) -> AttentionPlan:
    """Work out masks for the queries of ``hidden_BTC`` against themselves, or against cache slots.

    ``key_slots`` is how many leading slots of the cache the keys will span. ``masked`` is a back end to take
    instead where documents or a window hide keys (see :class:`BackendChoice`).

    ``static`` forbids decisions on the documents' content (blocks compiled once must see one plan).

    Raises:
        UserError: documents beside a cache, or a cache in an encoder.
    """
    batch, length = hidden_BTC.shape[:2]
    if starts_B is not None:
        if documents_BT is not None:
            raise UserError("documents cannot be told apart inside a KV cache; give one document a row")
        if not config.causal:
            raise UserError("a KV cache needs a causal model; this one is an encoder")
    segments = None
    # Reading the documents would make any other device than a CPU wait.
    if documents_BT is not None and documents_BT.device.type == "cpu" and not static:
        segments = _segments(documents_BT)
        if segments == (length,) * batch:
            documents_BT = segments = None  # one document a row: the plain form suffices
    hides = starts_B is None and (documents_BT is not None or config.window is not None)
    if masked is not None and hides and _compute_dtype(hidden_BTC) in HALF:
        backend = masked
    plan = AttentionPlan(backend, config.causal, config.window, config.attention_softcap)
    if backend != "sdpa":
        return replace(plan, documents_BT=documents_BT, starts_B=starts_B)
    dtype, device = _compute_dtype(hidden_BTC), hidden_BTC.device
    if starts_B is not None:
        assert key_slots is not None
        return replace(plan, mask=_cache_mask(starts_B, length, key_slots, config.window, dtype))
    longest = length if segments is None else max(segments)
    window = config.window if config.window is not None and config.window < longest else None
    if segments is not None and window is None and batch * length >= SEGMENT_WORTHWHILE * len(segments):
        return replace(plan, segments=segments)
    if documents_BT is None and window is None:
        return plan
    return replace(plan, mask=_self_mask(documents_BT, length, config.causal, window, dtype, device))


def _compute_dtype(hidden_BTC: Tensor) -> torch.dtype:
    kind = hidden_BTC.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_BTC.dtype


def _segments(documents_BT: Tensor) -> tuple[int, ...] | None:
    """Lengths of the runs of equal ids, row after row; ``None`` if an id comes back later in its row."""
    rows_B1 = torch.arange(documents_BT.shape[0])[:, None]
    keys = (rows_B1 << 32) + documents_BT  # ids of different rows never meet
    runs, counts = torch.unique_consecutive(keys, return_counts=True)
    if runs.unique().numel() != runs.numel():
        return None
    return tuple(counts.tolist())


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    # Added rather than boolean: PyTorch would convert a boolean mask again in every layer.
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, float("-inf"))


def _self_mask(
    documents_BT: Tensor | None,
    length: int,
    causal: bool,
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    index = torch.arange(length, device=device)
    distance_TS = index[:, None] - index
    allowed = torch.ones(1, length, length, dtype=torch.bool, device=device)
    if causal:
        allowed = allowed & (distance_TS >= 0)
    if window is not None:
        allowed = allowed & (distance_TS.abs() < window)
    if documents_BT is not None:
        allowed = allowed & (documents_BT[:, :, None] == documents_BT[:, None, :])
    return _additive(allowed[:, None], dtype)


def _cache_mask(
    starts_B: Tensor, length: int, key_slots: int, window: int | None, dtype: torch.dtype
) -> Tensor:
    index_T = torch.arange(length, device=starts_B.device)
    slots_S = torch.arange(key_slots, device=starts_B.device)
    distance_BTS = (starts_B[:, None] + index_T)[:, :, None] - slots_S
    allowed = distance_BTS >= 0
    if window is not None:
        allowed = allowed & (distance_BTS < window)
    return _additive(allowed[:, None], dtype)


def attend(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, plan: AttentionPlan) -> Tensor:
    """Scaled dot-product attention, (B, T, H, D), by the plan's backend; scale 1 / sqrt(D)."""
    if plan.backend == "sdpa":
        if plan.segments is not None:
            return _attend_segments(q_BTHD, k_BSKD, v_BSKD, plan)
        is_causal = plan.causal and plan.mask is None
        return _sdpa(q_BTHD, k_BSKD, v_BSKD, mask=plan.mask, is_causal=is_causal)
    masks: dict[str, Any] = {
        "causal": plan.causal,
        "window": plan.window,
        "softcap": plan.softcap,
        "documents_BT": plan.documents_BT,
        "starts_B": plan.starts_B,
    }
    if plan.backend == "triton":
        out_BTHD = attention(q_BTHD, k_BSKD, v_BSKD, **masks)
    else:
        accumulate = torch.promote_types(q_BTHD.dtype, torch.float32)
        out_BTHD = attention_reference(q_BTHD, k_BSKD, v_BSKD, accumulate=accumulate, **masks)
    assert isinstance(out_BTHD, Tensor)
    return out_BTHD


def _attend_segments(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, plan: AttentionPlan) -> Tensor:
    assert plan.segments is not None
    lengths = list(plan.segments)
    flat = [torch.split(x.flatten(0, 1)[None], lengths, dim=1) for x in (q_BTHD, k_BSKD, v_BSKD)]
    pieces = [_sdpa(q, k, v, mask=None, is_causal=plan.causal) for q, k, v in zip(*flat, strict=True)]
    return torch.cat(pieces, dim=1).view(q_BTHD.shape)


def _sdpa(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, *, mask: Tensor | None, is_causal: bool) -> Tensor:
    out_BHTD = F.scaled_dot_product_attention(
        q_BTHD.transpose(1, 2),
        k_BSKD.transpose(1, 2),
        v_BSKD.transpose(1, 2),
        attn_mask=mask,
        is_causal=is_causal,
        enable_gqa=q_BTHD.shape[2] != k_BSKD.shape[2],
    )
    return out_BHTD.transpose(1, 2)
