"""The public attention functions: check their arguments, choose a path, call the operator.

Shapes: B batch, T query length, S key length, N packed queries, M packed keys, H query heads, K kv heads,
D head dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.kernels.attention.checks import (
    DTYPES,
    check_masks,
    check_options,
    check_packing,
    check_shapes,
    head_dim_fault,
)
from lit_eff.kernels.attention.checks import (
    check_lengths as check_cumulative,
)
from lit_eff.kernels.attention.cpu import attention_on_cpu, path_on_cpu
from lit_eff.kernels.attention.paths import Path
from lit_eff.kernels.device import INTERPRETER_FAULT, TRITON_INSTALLED, device_obstacle

if TRITON_INSTALLED:
    from lit_eff.kernels.attention import operator


@dataclass(frozen=True)
class Support:
    """Whether the Triton form can run something and, if it cannot, one sentence on why. True when it can."""

    supported: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.supported


def supports(device: torch.device | str, *, head_dim: int, dtype: torch.dtype | None = None) -> Support:
    """Whether the Triton attention runs on ``device`` for this head dim and (if given) dtype.

    Every other feature is always there.
    """
    device = torch.device(device)
    if fault := head_dim_fault(head_dim):
        return Support(False, fault)
    if dtype is not None and dtype not in DTYPES:
        return Support(False, f"dtype {dtype} is not float16, bfloat16 or float32")
    if TRITON_INSTALLED and operator.INTERPRETED:
        if dtype == torch.bfloat16:
            return Support(False, INTERPRETER_FAULT)
        return Support(True)
    fault = device_obstacle(device)
    return Support(fault is None, fault or "")


def attention(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    scale: float | None = None,
    documents_BT: Tensor | None = None,
    key_documents_BS: Tensor | None = None,
    starts_B: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact attention in one Triton kernel, differentiable, never holding the (T, S) scores in memory.

    Query t stands at slot t + S - T: the last query at the last key. On a CPU it is PyTorch's own attention
    that runs, or the plain reference; :func:`explain` says which, and why.

    Args:
        q_BTHD: queries; float16, bfloat16 or float32, any strides. H is a multiple of K; T and S may be 0.
        k_BSKD: keys, same dtype and device; D from 16 to 256.
        v_BSKD: values, the shape of the keys.
        causal: a query sees keys up to its own slot.
        window: a query sees the slots less than ``window`` away from its own: with ``causal`` itself and the
            ``window - 1`` before it, without as many after it too.
        softcap: scores become ``softcap * tanh(scores / softcap)`` (after the scale).
        sinks: (H,) logits: each head's softmax has one more entry of this score, whose value is zero.
            Differentiable; -inf is no sink.
        alibi: (H,) positive slopes: ``-slope * |slot - key|`` is added to the scores (Press et al. 2022),
            after the softcap. Not differentiable.
        dropout_p: weights are zeroed with this probability, the rest divided by ``1 - dropout_p``.
        seed: an int, or one int64 on the device (which a CUDA graph may refill), that alone determines which
            (see `dropout.kept_weights`); drawn from torch's generator by default.
        scale: factor on the scores; 1 / sqrt(D) by default.
        documents_BT: integer ids of 32 bits; a query sees only keys of its own id. Where equal ids lie
            together and ids rise along a row (padding, -1, last), blocks outside a document are not visited.
        key_documents_BS: the keys' ids; ``documents_BT`` by default.
        starts_B: integer; query t of row b stands at key slot ``starts_B[b] + t`` (a KV cache) and sees
            slots up to its own. Implies ``causal``.
        return_lse: also return the natural log-sum-exp of the scores, sinks included; its gradient is
            supported.

    Returns:
        (B, T, H, D) in the dtype of ``q_BTHD``; with ``return_lse`` also (B, H, T) float32. A query that sees
        no key yields zeros and -inf (its sink, if there is one). Under autocast the inputs are cast first.

    Raises:
        UserError: naming the argument that does not fit, before anything is launched.

    Source: FlashAttention-2 (Dao 2023), Algorithms 1 and 2; gradients are deterministic.
    """
    tensors, arguments = _row_arguments(
        (q_BTHD, k_BSKD, v_BSKD),
        causal=causal,
        window=window,
        softcap=softcap,
        sinks=sinks,
        alibi=alibi,
        dropout_p=dropout_p,
        seed=seed,
        scale=scale,
        documents_BT=documents_BT,
        key_documents_BS=key_documents_BS,
        starts_B=starts_B,
    )
    out_BTHD, lse_BHT = _attend(tensors, arguments, return_lse)
    return out_BTHD if lse_BHT is None else (out_BTHD, lse_BHT)


def attention_varlen(
    q_NHD: Tensor,
    k_MKD: Tensor,
    v_MKD: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    causal: bool = False,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    check_lengths: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`attention` within each of B sequences that are packed one after another, by the same kernels.

    Sequence b has the queries ``cu_seqlens_q[b]`` to ``cu_seqlens_q[b + 1]`` and the keys of the same places
    in ``cu_seqlens_k``; either may be none. Its last query stands at its last key. Dropout takes b for the
    batch row and counts queries and keys within the sequence, so packing does not change the mask.

    Args:
        q_NHD: queries of all sequences; dtype and strides as for :func:`attention`.
        k_MKD, v_MKD: keys and values.
        cu_seqlens_q, cu_seqlens_k: int32 or int64, (B + 1,): 0, then where each sequence ends; the last
            number is N (M). On the device, or on the CPU, from where they are checked and copied.
        max_seqlen_q, max_seqlen_k: lengths that no sequence exceeds; only their blocks are launched. Without
            them, and with lengths on a GPU, the greatest ones are read back, for which the host waits (and
            which torch.compile cannot trace).
        check_lengths: read lengths on a GPU too and check that they fit, for which the host waits. (Unchecked
            ones that do not fit read and write out of bounds, or leave rows unwritten.)

    The other options are those of :func:`attention`.

    Returns:
        (N, H, D) in the dtype of ``q_NHD``; with ``return_lse`` also (H, N) float32.

    Raises:
        UserError: naming the argument that does not fit, before anything is launched.
    """
    tensors, arguments = _packed_arguments(
        (q_NHD, k_MKD, v_MKD),
        (cu_seqlens_q, cu_seqlens_k),
        (max_seqlen_q, max_seqlen_k),
        check_lengths,
        causal=causal,
        window=window,
        softcap=softcap,
        sinks=sinks,
        alibi=alibi,
        dropout_p=dropout_p,
        seed=seed,
        scale=scale,
    )
    out_1NHD, lse_1HN = _attend(tensors, arguments, return_lse)
    return out_1NHD[0] if lse_1HN is None else (out_1NHD[0], lse_1HN[0])


def explain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *cu_seqlens: Tensor,
    return_lse: bool = False,
    backward: bool = False,
    **options: Any,
) -> Path:
    """Which path :func:`attention` (or, given the two ``cu_seqlens``, :func:`attention_varlen`) would take.

    Takes the same arguments and runs nothing; ``backward`` asks for the path of its gradients. The path's
    ``name`` is ``hopper`` or ``portable`` on a GPU, ``interpreter``, ``sdpa`` or ``reference`` off it;
    ``reason`` says why. `paths.use_path` forces one.

    Raises:
        UserError: what the call itself would raise.
    """
    if options.get("seed") is None:
        options["seed"] = 0  # none is drawn
    if cu_seqlens:
        cu_seqlens_q, cu_seqlens_k = cu_seqlens
        longest = options.pop("max_seqlen_q", None), options.pop("max_seqlen_k", None)
        check = options.pop("check_lengths", False)
        tensors, arguments = _packed_arguments(
            (q, k, v), (cu_seqlens_q, cu_seqlens_k), longest, check, **options
        )
    else:
        tensors, arguments = _row_arguments((q, k, v), **options)
    path = _path_without_kernels(tensors[0], arguments, return_lse)
    return path or operator.path(*tensors, backward=backward, **arguments)


Tensors = tuple[Tensor, Tensor, Tensor]
Arguments = dict[str, Any]  # the operator's, by name


def _row_arguments(
    tensors: Tensors,
    *,
    documents_BT: Tensor | None = None,
    key_documents_BS: Tensor | None = None,
    starts_B: Tensor | None = None,
    **options: Any,
) -> tuple[Tensors, Arguments]:
    q_BTHD, k_BSKD, v_BSKD = tensors = _autocast(tensors)
    check_shapes(q_BTHD, k_BSKD, v_BSKD)
    if documents_BT is not None and key_documents_BS is None:
        key_documents_BS = documents_BT
    check_masks(q_BTHD, k_BSKD, documents_BT, key_documents_BS, starts_B)
    arguments = _common_arguments(q_BTHD, **options) | {
        "documents_BT": documents_BT,
        "key_documents_BS": key_documents_BS,
        "starts_B": None if starts_B is None else starts_B.contiguous(),
        "cu_seqlens_q": None,
        "cu_seqlens_k": None,
        "max_seqlen_q": 0,
        "max_seqlen_k": 0,
    }
    arguments["causal"] = arguments["causal"] or starts_B is not None
    return tensors, arguments


def _packed_arguments(
    tensors: Tensors,
    cumulative: tuple[Tensor, Tensor],
    longest: tuple[int | None, int | None],
    check: bool,
    **options: Any,
) -> tuple[Tensors, Arguments]:
    q_NHD, k_MKD, v_MKD = _autocast(tensors)
    check_shapes(q_NHD, k_MKD, v_MKD, packed=True)
    check_packing(q_NHD, k_MKD, *cumulative, *longest)
    common = _common_arguments(q_NHD, **options)
    packing: Arguments = {"documents_BT": None, "key_documents_BS": None, "starts_B": None}
    for name, tensor, lengths, greatest in zip("qk", (q_NHD, k_MKD), cumulative, longest, strict=True):
        # Traced lengths have no values to check.
        if (check or lengths.device.type == "cpu") and not torch.compiler.is_compiling():
            greatest = check_cumulative(name, lengths.tolist(), tensor.shape[0], greatest)
        elif greatest is None:
            greatest = int((lengths[1:] - lengths[:-1]).max()) if lengths.numel() > 1 else 0
        packing[f"cu_seqlens_{name}"] = lengths.to(q_NHD.device, non_blocking=True).contiguous()
        packing[f"max_seqlen_{name}"] = greatest
    return (q_NHD[None], k_MKD[None], v_MKD[None]), common | packing


def _autocast(tensors: Tensors) -> Tensors:
    kind = tensors[0].device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    q, k, v = tensors
    return q.to(dtype), k.to(dtype), v.to(dtype)


def _common_arguments(
    q: Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    scale: float | None = None,
) -> Arguments:
    check_options(q, window=window, softcap=softcap, sinks=sinks, alibi=alibi, dropout_p=dropout_p, seed=seed)
    return {
        "causal": causal,
        "window": window,
        "softcap": None if softcap is None else float(softcap),
        "scale": 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale),
        "sinks_H": None if sinks is None else sinks.float().contiguous(),
        "alibi_H": None if alibi is None else alibi.detach().float().contiguous(),
        "dropout_p": float(dropout_p),
        "seed": _seed_tensor(seed, q.device) if dropout_p > 0 else None,
    }


def _seed_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor:
    if isinstance(seed, Tensor):
        return seed.reshape(1)
    if seed is None:
        return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=device)
    return torch.full((1,), seed, dtype=torch.int64, device=device)  # filled there: no copy to wait for


def _path_without_kernels(q: Tensor, arguments: Arguments, return_lse: bool) -> Path | None:
    """The path of a call that the Triton kernels do not run: PyTorch's on a CPU, an error elsewhere."""
    if q.device.type == "cpu" and not (TRITON_INSTALLED and operator.INTERPRETED):
        return path_on_cpu(arguments, return_lse)
    support = supports(q.device, head_dim=q.shape[-1], dtype=q.dtype)
    if not support:
        raise UserError(f"Triton attention cannot run: {support.reason}")
    return None


def _attend(tensors: Tensors, arguments: Arguments, return_lse: bool) -> tuple[Tensor, Tensor | None]:
    path = _path_without_kernels(tensors[0], arguments, return_lse)
    if path is not None:
        return attention_on_cpu(*tensors, arguments, path, return_lse=return_lse)
    out_BTHD, lse_BHT = operator.attention_forward(*tensors, **arguments)
    return out_BTHD, lse_BHT if return_lse else None
