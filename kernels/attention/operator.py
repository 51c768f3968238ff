"""The kernels as PyTorch operators, so that autograd, torch.compile and fake tensors know them.

Needs Triton; :mod:`lit_eff.kernels.attention.interface` checks arguments and decides whether to come here.
Shapes: B batch, T query length, S key length, N packed queries, M packed keys, H query heads, K kv heads,
D head dim. Packed sequences come as one row: q (1, N, H, D), k and v (1, M, K, D).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from lit_eff.kernels.attention import backward, forward
from lit_eff.kernels.attention.call import AttentionCall, addressable
from lit_eff.kernels.attention.paths import Path, path_of
from lit_eff.profiling.launch import Launch

# Triton reads TRITON_INTERPRET when a kernel is decorated, that is when this package was imported.
INTERPRETED = not isinstance(forward.attention_forward_kernel, triton.JITFunction)


def _on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _run(launches: Sequence[Launch]) -> None:
    for launch in launches:
        if 0 not in launch.grid:
            launch.run()


def _call(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    documents_BT: Tensor | None,
    key_documents_BS: Tensor | None,
    starts_B: Tensor | None,
    sinks_H: Tensor | None,
    alibi_H: Tensor | None,
    seed: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    dropout_p: float,
) -> AttentionCall:
    return AttentionCall(
        addressable(q_BTHD),
        addressable(k_BSKD),
        addressable(v_BSKD),
        documents_BT,
        key_documents_BS,
        starts_B,
        scale,
        causal,
        window,
        softcap,
        sinks_H=sinks_H,
        alibi_H=alibi_H,
        dropout_p=dropout_p,
        seed=seed,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
    )


def path(*tensors: Any, **arguments: Any) -> Path:
    """The path that :func:`attention_forward` takes with these arguments."""
    return path_of(_call(*tensors, **arguments))


@torch.library.custom_op("lit_eff::attention_forward", mutates_args=())
def attention_forward(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    documents_BT: Tensor | None,
    key_documents_BS: Tensor | None,
    starts_B: Tensor | None,
    sinks_H: Tensor | None,
    alibi_H: Tensor | None,
    seed: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """Output (B, T, H, D) in the dtype of q and natural log-sum-exp (B, H, T) in float32."""
    batch, queries, heads, _ = q_BTHD.shape
    out_BTHD = torch.empty(q_BTHD.shape, dtype=q_BTHD.dtype, device=q_BTHD.device)
    lse_BHT = torch.empty((batch, heads, queries), dtype=torch.float32, device=q_BTHD.device)
    call = _call(
        q_BTHD, k_BSKD, v_BSKD, documents_BT, key_documents_BS, starts_B, sinks_H, alibi_H, seed,
        cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, causal, window, softcap, dropout_p,
    )  # fmt: skip
    with _on_device_of(q_BTHD):
        if path_of(call).name == "hopper":
            from lit_eff.kernels.attention.hopper.forward import forward_launch

            _run([forward_launch(call, out_BTHD, lse_BHT)])
        else:
            _run(forward.forward_launches(call, out_BTHD, lse_BHT))
    return out_BTHD, lse_BHT


@attention_forward.register_fake
def _(q_BTHD: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch, queries, heads, _head_dim = q_BTHD.shape
    return q_BTHD.new_empty(q_BTHD.shape), q_BTHD.new_empty((batch, heads, queries), dtype=torch.float32)


@torch.library.custom_op("lit_eff::attention_backward", mutates_args=())
def attention_backward(
    dout_BTHD: Tensor,
    dlse_BHT: Tensor | None,
    out_BTHD: Tensor,
    lse_BHT: Tensor,
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    documents_BT: Tensor | None,
    key_documents_BS: Tensor | None,
    starts_B: Tensor | None,
    sinks_H: Tensor | None,
    alibi_H: Tensor | None,
    seed: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dQ, dK and dV, contiguous, in the dtypes and shapes of q, k and v; d(sinks), (H,) or (0,) without."""
    dq_BTHD = torch.empty(q_BTHD.shape, dtype=q_BTHD.dtype, device=q_BTHD.device)
    dk_BSKD = torch.empty(k_BSKD.shape, dtype=k_BSKD.dtype, device=k_BSKD.device)
    dv_BSKD = torch.empty_like(dk_BSKD)
    delta_BHT = torch.empty_like(lse_BHT)
    call = _call(
        q_BTHD, k_BSKD, v_BSKD, documents_BT, key_documents_BS, starts_B, sinks_H, alibi_H, seed,
        cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, causal, window, softcap, dropout_p,
    )  # fmt: skip
    dout_BTHD = addressable(dout_BTHD)
    dlse_BHT = None if dlse_BHT is None else dlse_BHT.contiguous()
    with _on_device_of(q_BTHD):
        if path_of(call).name == "hopper":
            from lit_eff.kernels.attention.hopper.backward import backward_launches
        else:
            backward_launches = backward.backward_launches
        _run(
            backward_launches(
                call, out_BTHD, lse_BHT, dout_BTHD, dlse_BHT, delta_BHT, dq_BTHD, dk_BSKD, dv_BSKD
            )
        )
    return dq_BTHD, dk_BSKD, dv_BSKD, _sinks_gradient(sinks_H, lse_BHT, delta_BHT)


def _sinks_gradient(sinks_H: Tensor | None, lse_BHT: Tensor, delta_BHT: Tensor) -> Tensor:
    """A sink's weight is exp(sink - lse), its value zero: dS = P * (0 - delta), summed over queries."""
    if sinks_H is None:
        return lse_BHT.new_empty(0)
    # A query without keys beside a sink of -inf has no weight there either: -inf minus -inf is NaN.
    weights_BHT = torch.exp(sinks_H[:, None] - lse_BHT).nan_to_num(nan=0.0)
    return -(weights_BHT * delta_BHT).sum(dim=(0, 2))


@attention_backward.register_fake
def _(
    dout_BTHD: Tensor,
    dlse_BHT: Tensor | None,
    out_BTHD: Tensor,
    lse_BHT: Tensor,
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    documents_BT: Tensor | None,
    key_documents_BS: Tensor | None,
    starts_B: Tensor | None,
    sinks_H: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq_BTHD, dk_BSKD, dv_BSKD = (tensor.new_empty(tensor.shape) for tensor in (q_BTHD, k_BSKD, v_BSKD))
    return dq_BTHD, dk_BSKD, dv_BSKD, lse_BHT.new_empty(0 if sinks_H is None else sinks_H.shape[0])


TENSORS = 11  # the operator's first arguments, saved for the backward


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs[:TENSORS])
    ctx.scalars = inputs[TENSORS:]
    ctx.set_materialize_grads(False)  # the log-sum-exp seldom has a gradient: do not read zeros for it


def _backward(ctx: Any, dout_BTHD: Tensor | None, dlse_BHT: Tensor | None) -> tuple[Tensor | None, ...]:
    out_BTHD, lse_BHT, *tensors = ctx.saved_tensors
    absent = (None,) * (TENSORS + len(ctx.scalars))
    if dout_BTHD is None:
        if dlse_BHT is None:
            return absent
        dout_BTHD = torch.zeros_like(out_BTHD)
    dq_BTHD, dk_BSKD, dv_BSKD, dsinks_H = attention_backward(
        dout_BTHD, dlse_BHT, out_BTHD, lse_BHT, *tensors, *ctx.scalars
    )
    has_sinks = tensors[6] is not None
    return dq_BTHD, dk_BSKD, dv_BSKD, None, None, None, dsinks_H if has_sinks else None, *absent[7:]


attention_forward.register_autograd(_backward, setup_context=_setup_context)
