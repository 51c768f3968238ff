"""What the public attention functions refuse, before anything is launched and in one line each.

Shapes: B batch, T query length, S key length, N packed queries, M packed keys, H query heads, K kv heads,
D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lit_eff.errors import UserError

MIN_HEAD_DIM, MAX_HEAD_DIM = 16, 256
MAX_GRID = 65_535  # CUDA's limit on the second and third grid dimensions: heads and batch
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def head_dim_fault(head_dim: int) -> str | None:
    if MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM:
        return None
    return f"head dim {head_dim} is outside {MIN_HEAD_DIM} to {MAX_HEAD_DIM}"


def check_shapes(q: Tensor, k: Tensor, v: Tensor, *, packed: bool = False) -> None:
    """q (B, T, H, D), k and v (B, S, K, D); packed: (N, H, D) and (M, K, D)."""
    wanted = "q (N, H, D) and k (M, K, D)" if packed else "q (B, T, H, D) and k (B, S, K, D)"
    if not q.ndim == k.ndim == (3 if packed else 4):
        raise UserError(f"attention wants {wanted}; got {_s(q)} and {_s(k)}")
    if k.shape != v.shape:
        raise UserError(f"attention wants k and v of one shape; got {_s(k)} and {_s(v)}")
    (heads, head_dim), (kv_heads, key_dim) = q.shape[-2:], k.shape[-2:]
    if head_dim != key_dim or (not packed and q.shape[0] != k.shape[0]):
        raise UserError(f"attention: q {_s(q)} and k {_s(k)} differ in batch or head dim")
    if heads % kv_heads if kv_heads else heads:
        raise UserError(f"attention: {heads} query heads are not a multiple of {kv_heads} kv heads")
    if fault := head_dim_fault(head_dim):
        raise UserError(f"attention: {fault}")
    if (not packed and q.shape[0] > MAX_GRID) or heads > MAX_GRID:
        raise UserError(f"attention: batch and heads of q {_s(q)} may be at most {MAX_GRID} each")
    if not q.dtype == k.dtype == v.dtype:
        raise UserError(f"attention wants one dtype; got q {q.dtype}, k {k.dtype}, v {v.dtype}")
    if q.dtype not in DTYPES:
        raise UserError(f"attention: dtype {q.dtype} is not float16, bfloat16 or float32")
    if not q.device == k.device == v.device:
        raise UserError(f"attention wants one device; got q {q.device}, k {k.device}, v {v.device}")


def check_options(
    q: Tensor,
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
) -> None:
    """Options that both functions have; ``q`` (..., H, D)."""
    if window is not None and window < 1:
        raise UserError(f"attention: window {window} must be at least 1, or None for no window")
    if softcap is not None and not softcap > 0:
        raise UserError(f"attention: softcap {softcap} must be positive, or None for no cap")
    if not 0 <= dropout_p < 1:
        raise UserError(f"attention: dropout_p {dropout_p} must be at least 0 and below 1")
    if isinstance(seed, Tensor):
        if seed.numel() != 1 or seed.dtype != torch.int64 or seed.device != q.device:
            raise UserError(
                f"attention: seed must be an int, or one int64 on {q.device}; got {seed.dtype} {_s(seed)} "
                f"on {seed.device}"
            )
    elif seed is not None and not -(2**63) <= seed < 2**63:
        raise UserError(f"attention: seed {seed} does not fit 64 signed bits")
    for name, values in (("sinks", sinks), ("alibi", alibi)):
        if values is None:
            continue
        if tuple(values.shape) != (q.shape[-2],) or not values.dtype.is_floating_point:
            raise UserError(
                f"attention: {name} must be floating point, ({q.shape[-2]},), one a query head; got "
                f"{values.dtype} {_s(values)}"
            )
        _check_device(name, values, q)


def check_masks(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    documents_BT: Tensor | None,
    key_documents_BS: Tensor | None,
    starts_B: Tensor | None,
) -> None:
    if key_documents_BS is not None and documents_BT is None:
        raise UserError("attention: key_documents_BS needs documents_BT")
    batch = q_BTHD.shape[0]
    for name, ids, shape in (
        ("documents_BT", documents_BT, (batch, q_BTHD.shape[1])),
        ("key_documents_BS", key_documents_BS, (batch, k_BSKD.shape[1])),
        ("starts_B", starts_B, (batch,)),
    ):
        if ids is not None:
            _check_integers(name, ids, shape, q_BTHD)


def check_packing(
    q_NHD: Tensor,
    k_MKD: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None,
    max_seqlen_k: int | None,
) -> None:
    """What is known of the cumulative lengths without reading them."""
    sequences = cu_seqlens_q.numel()
    if sequences < 1 or sequences - 1 > MAX_GRID:
        raise UserError(
            f"attention_varlen: cu_seqlens_q holds {sequences} numbers; expected 1 to {MAX_GRID + 1}"
        )
    for name, lengths in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        _check_integers(name, lengths, (sequences,), None if lengths.device.type == "cpu" else q_NHD)
        if lengths.dtype not in (torch.int32, torch.int64):
            raise UserError(f"attention_varlen: {name} must be int32 or int64; got {lengths.dtype}")
    for name, longest in (("max_seqlen_q", max_seqlen_q), ("max_seqlen_k", max_seqlen_k)):
        if longest is not None and longest < 0:
            raise UserError(f"attention_varlen: {name} {longest} is negative")


def check_lengths(name: str, cumulative: Sequence[int], rows: int, longest: int | None) -> int:
    """The greatest length, once the cumulative lengths themselves are checked: reads them on the host."""
    lengths = [stop - start for start, stop in pairwise(cumulative)]
    if cumulative[0] != 0 or cumulative[-1] != rows:
        raise UserError(
            f"attention_varlen: cu_seqlens_{name} must run from 0 to the {rows} tokens there are; it runs "
            f"from {cumulative[0]} to {cumulative[-1]}"
        )
    for index, length in enumerate(lengths):
        if length < 0:
            raise UserError(
                f"attention_varlen: cu_seqlens_{name} decreases from {cumulative[index]} to "
                f"{cumulative[index + 1]} at index {index + 1}"
            )
    greatest = max(lengths, default=0)
    if longest is not None and greatest > longest:
        raise UserError(f"attention_varlen: max_seqlen_{name} {longest} is less than the longest, {greatest}")
    return greatest if longest is None else longest


def _check_integers(name: str, ids: Tensor, shape: tuple[int, ...], beside: Tensor | None) -> None:
    if tuple(ids.shape) != shape:
        raise UserError(f"attention: {name} must have shape {shape}; got {_s(ids)}")
    if ids.dtype.is_floating_point or ids.dtype == torch.bool or ids.dtype.is_complex:
        raise UserError(f"attention: {name} must hold integers; got {ids.dtype}")
    if beside is not None:
        _check_device(name, ids, beside)


def _check_device(name: str, tensor: Tensor, q: Tensor) -> None:
    if tensor.device != q.device:
        raise UserError(f"attention: {name} is on {tensor.device}, q on {q.device}")


def _s(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
