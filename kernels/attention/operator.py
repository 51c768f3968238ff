"""The Triton kernels as PyTorch operators, so that autograd, torch.compile and fake tensors know them.

Needs Triton; :mod:`lit_eff.kernels.attention.interface` checks arguments and decides whether to come here.
Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from lit_eff.kernels.attention.backward import backward_launches
from lit_eff.kernels.attention.call import AttentionCall, addressable
from lit_eff.kernels.attention.forward import attention_forward_kernel, forward_launch

# Triton reads TRITON_INTERPRET when a kernel is decorated, that is when this package was imported.
INTERPRETED = not isinstance(attention_forward_kernel, triton.JITFunction)


def _on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@torch.library.custom_op("lit_eff::attention_forward", mutates_args=())
def attention_forward(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    documents_BT: Tensor | None,
    key_documents_BS: Tensor | None,
    starts_B: Tensor | None,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Output (B, T, H, D) in the dtype of q and natural log-sum-exp (B, H, T) in float32."""
    batch, queries, heads, _ = q_BTHD.shape
    out_BTHD = torch.empty(q_BTHD.shape, dtype=q_BTHD.dtype, device=q_BTHD.device)
    lse_BHT = torch.empty((batch, heads, queries), dtype=torch.float32, device=q_BTHD.device)
    tensors = (addressable(q_BTHD), addressable(k_BSKD), addressable(v_BSKD))
    call = AttentionCall(*tensors, documents_BT, key_documents_BS, starts_B, scale, causal, window, softcap)
    with _on_device_of(q_BTHD):
        forward_launch(call, out_BTHD, lse_BHT).run()
    return out_BTHD, lse_BHT


@attention_forward.register_fake
def _(q_BTHD: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch, queries, heads, _d = q_BTHD.shape
    return q_BTHD.new_empty(q_BTHD.shape), q_BTHD.new_empty((batch, heads, queries), dtype=torch.float32)


@torch.library.custom_op("lit_eff::attention_backward", mutates_args=())
def attention_backward(
    dout_BTHD: Tensor,
    dlse_BHT: Tensor | None,
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    out_BTHD: Tensor,
    lse_BHT: Tensor,
    documents_BT: Tensor | None,
    key_documents_BS: Tensor | None,
    starts_B: Tensor | None,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ, dK and dV, contiguous, in the dtypes and shapes of q, k and v."""
    dq_BTHD = torch.empty(q_BTHD.shape, dtype=q_BTHD.dtype, device=q_BTHD.device)
    dk_BSKD = torch.empty(k_BSKD.shape, dtype=k_BSKD.dtype, device=k_BSKD.device)
    dv_BSKD = torch.empty_like(dk_BSKD)
    delta_BHT = torch.empty_like(lse_BHT)
    tensors = (addressable(q_BTHD), addressable(k_BSKD), addressable(v_BSKD))
    call = AttentionCall(*tensors, documents_BT, key_documents_BS, starts_B, scale, causal, window, softcap)
    dlse_BHT = None if dlse_BHT is None else dlse_BHT.contiguous()
    with _on_device_of(q_BTHD):
        for launch in backward_launches(
            call, out_BTHD, lse_BHT, addressable(dout_BTHD), dlse_BHT, delta_BHT, dq_BTHD, dk_BSKD, dv_BSKD
        ):
            launch.run()
    return dq_BTHD, dk_BSKD, dv_BSKD


@attention_backward.register_fake
def _(
    dout_BTHD: Tensor, dlse_BHT: Tensor | None, q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q_BTHD.new_empty(q_BTHD.shape), k_BSKD.new_empty(k_BSKD.shape), v_BSKD.new_empty(v_BSKD.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q_BTHD, k_BSKD, v_BSKD, documents_BT, key_documents_BS, starts_B, *ctx.scalars = inputs
    ctx.save_for_backward(q_BTHD, k_BSKD, v_BSKD, *output, documents_BT, key_documents_BS, starts_B)
    ctx.set_materialize_grads(False)  # the log-sum-exp seldom has a gradient: do not read zeros for it


def _backward(ctx: Any, dout_BTHD: Tensor | None, dlse_BHT: Tensor | None) -> tuple[Tensor | None, ...]:
    q_BTHD, k_BSKD, v_BSKD, out_BTHD, lse_BHT, *masks = ctx.saved_tensors
    if dout_BTHD is None:
        if dlse_BHT is None:
            return (None,) * 10
        dout_BTHD = torch.zeros_like(out_BTHD)
    gradients = attention_backward(
        dout_BTHD, dlse_BHT, q_BTHD, k_BSKD, v_BSKD, out_BTHD, lse_BHT, *masks, *ctx.scalars
    )
    return (*gradients, *(None,) * 7)


attention_forward.register_autograd(_backward, setup_context=_setup_context)
