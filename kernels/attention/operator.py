"""The kernels as PyTorch operators, so that autograd, torch.compile and fake tensors know them.

Needs Triton; :mod:`lit_eff.kernels.attention.interface` checks arguments and decides whether to come here.
Registered with `torch.library.Library` rather than `custom_op`, whose handling of defaults costs 140
microseconds a call with this many arguments.

Shapes: B batch, T query length, S key length, N packed queries, M packed keys, H query heads, K kv heads,
D head dim. Packed sequences come as one row: q (1, N, H, D), k and v (1, M, K, D).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from lit_eff.kernels.attention import backward, forward
from lit_eff.kernels.attention.call import AttentionCall, addressable
from lit_eff.kernels.attention.paths import Path, forced_path, path_of
from lit_eff.kernels.attention.tiles import forced_tiles
from lit_eff.profiling.launch import Launch
from lit_eff.profiling.replay import LaunchCache, workspace

# Triton reads TRITON_INTERPRET when a kernel is decorated, that is when this package was imported.
INTERPRETED = not isinstance(forward.attention_forward_kernel, triton.JITFunction)

# Names are those of `AttentionCall`. The tensors come first and are saved for the backward.
TENSORS = (
    "Tensor q_BTHD, Tensor k_BSKD, Tensor v_BSKD, Tensor? documents_BT, Tensor? key_documents_BS, "
    "Tensor? starts_B, Tensor? sinks_H, Tensor? alibi_H, Tensor? seed, Tensor? cu_seqlens_q, "
    "Tensor? cu_seqlens_k"
)
SCALARS = (
    "SymInt max_seqlen_q, SymInt max_seqlen_k, float scale, bool causal, SymInt? window, float? softcap, "
    "float dropout_p"
)
NAMES = [argument.split()[-1] for argument in f"{TENSORS}, {SCALARS}".split(", ")]
SINKS, SAVED = NAMES.index("sinks_H"), len(TENSORS.split(", "))

LAUNCHES = LaunchCache()

LIBRARY: Any = torch.library.Library("lit_eff", "FRAGMENT")  # type: ignore[no-untyped-call]
COMPLIANT = (torch.Tag.pt2_compliant_tag,)
LIBRARY.define(f"attention_forward({TENSORS}, {SCALARS}) -> (Tensor, Tensor)", tags=COMPLIANT)
LIBRARY.define(
    f"attention_backward(Tensor dout_BTHD, Tensor? dlse_BHT, Tensor out_BTHD, Tensor lse_BHT, "
    f"{TENSORS}, {SCALARS}) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=COMPLIANT,
)
# Output (B, T, H, D) in the dtype of q, and natural log-sum-exp (B, H, T) in float32.
attention_forward = torch.ops.lit_eff.attention_forward.default
# dQ, dK and dV, contiguous, in the dtypes and shapes of q, k and v; d(sinks), (H,), or (0,) without.
attention_backward = torch.ops.lit_eff.attention_backward.default


def _call(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, *others: Any) -> AttentionCall:
    tensors = addressable(q_BTHD), addressable(k_BSKD), addressable(v_BSKD)
    return AttentionCall(**dict(zip(NAMES, (*tensors, *others), strict=True)))


def path(*tensors: Tensor, backward: bool, **others: Any) -> Path:
    """The path that :func:`attention_forward`, or its backward, takes with these arguments."""
    call = _call(*tensors, *(others[name] for name in NAMES[len(tensors) :]))
    return path_of(call, backward=backward)


def _on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    out_BTHD, lse_BHT = _empty_outputs(*arguments)

    def launches() -> list[Launch]:
        call = _call(*arguments)
        if path_of(call).name == "hopper":
            from lit_eff.kernels.attention.hopper.forward import forward_launch

            return [forward_launch(call, out_BTHD, lse_BHT)]
        return forward.forward_launches(call, out_BTHD, lse_BHT)

    with _on_device_of(out_BTHD):
        key = ("forward", forced_path(), forced_tiles(), *arguments[SAVED:])
        LAUNCHES.run(key, arguments[:SAVED], (out_BTHD, lse_BHT), launches)
    return out_BTHD, lse_BHT


def _empty_outputs(q_BTHD: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch, queries, heads, _head_dim = q_BTHD.shape
    lse_BHT = torch.empty((batch, heads, queries), dtype=torch.float32, device=q_BTHD.device)
    return _empty_like(q_BTHD), lse_BHT


def _empty_like(tensor: Tensor) -> Tensor:
    """Contiguous; quicker to make than from a shape."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _backward(
    dout_BTHD: Tensor, dlse_BHT: Tensor | None, out_BTHD: Tensor, lse_BHT: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients = [_empty_like(tensor) for tensor in arguments[:3]]
    # d(sinks) needs it afterwards
    kept_delta_BHT = None if arguments[SINKS] is None else torch.empty_like(lse_BHT)
    dout_BTHD = addressable(dout_BTHD)
    dlse_BHT = None if dlse_BHT is None else dlse_BHT.contiguous()

    def launches() -> list[Launch]:
        call = _call(*arguments)
        build: Callable[..., list[Launch]] = backward.backward_launches
        if path_of(call, backward=True).name == "hopper":
            from lit_eff.kernels.attention.hopper.backward import backward_launches as build
        delta_BHT = kept_delta_BHT
        if delta_BHT is None:
            delta_BHT = workspace(lse_BHT.shape, torch.float32, lse_BHT.device)
        return build(call, out_BTHD, lse_BHT, dout_BTHD, dlse_BHT, delta_BHT, *gradients)

    with _on_device_of(out_BTHD):
        key = ("backward", forced_path(), forced_tiles(), *arguments[SAVED:])
        inputs = (*arguments[:SAVED], out_BTHD, lse_BHT, dout_BTHD, dlse_BHT)
        outputs = gradients if kept_delta_BHT is None else (*gradients, kept_delta_BHT)
        LAUNCHES.run(key, inputs, outputs, launches)
    dq_BTHD, dk_BSKD, dv_BSKD = gradients
    return dq_BTHD, dk_BSKD, dv_BSKD, _sinks_gradient(arguments[SINKS], lse_BHT, kept_delta_BHT)


def _sinks_gradient(sinks_H: Tensor | None, lse_BHT: Tensor, delta_BHT: Tensor | None) -> Tensor:
    """A sink's weight is exp(sink - lse), its value zero: dS = P * (0 - delta), summed over queries."""
    if sinks_H is None or delta_BHT is None:
        return lse_BHT.new_empty(0)
    # A query without keys beside a sink of -inf has no weight there either: -inf minus -inf is NaN.
    weights_BHT = torch.exp(sinks_H[:, None] - lse_BHT).nan_to_num(nan=0.0)
    return -(weights_BHT * delta_BHT).sum(dim=(0, 2))


def _fake_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, _, _, lse_BHT, *call = arguments
    dq_BTHD, dk_BSKD, dv_BSKD = (tensor.new_empty(tensor.shape) for tensor in call[:3])
    sinks_H = call[SINKS]
    return dq_BTHD, dk_BSKD, dv_BSKD, lse_BHT.new_empty(0 if sinks_H is None else sinks_H.shape)


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        outputs = _below_autograd(*arguments)
        ctx.save_for_backward(*outputs, *arguments[:SAVED])
        ctx.scalars = arguments[SAVED:]
        ctx.set_materialize_grads(False)  # the log-sum-exp seldom has a gradient: do not read zeros for it
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_BTHD: Tensor | None, dlse_BHT: Tensor | None) -> tuple[Tensor | None, ...]:
        absent = [None] * len(NAMES)
        out_BTHD, lse_BHT, *tensors = ctx.saved_tensors
        if dout_BTHD is None:
            if dlse_BHT is None:
                return tuple(absent)
            dout_BTHD = torch.zeros_like(out_BTHD)
        *gradients, dsinks_H = attention_backward(
            dout_BTHD, dlse_BHT, out_BTHD, lse_BHT, *tensors, *ctx.scalars
        )
        absent[:3] = gradients
        absent[SINKS] = None if tensors[SINKS] is None else dsinks_H
        return tuple(absent)


def _differentiable(*arguments: Any) -> tuple[Tensor, Tensor]:
    tensors = (each for each in arguments[:SAVED] if each is not None)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _Differentiable.apply(*arguments)  # type: ignore[no-untyped-call, no-any-return]
    return _below_autograd(*arguments)


def _below_autograd(*arguments: Any) -> tuple[Tensor, Tensor]:
    q_BTHD = arguments[0]
    plain = type(q_BTHD) is Tensor and not torch._is_functional_tensor(q_BTHD)
    if q_BTHD.is_cuda and plain and not is_in_torch_dispatch_mode():
        return _forward(*arguments)  # where the dispatcher would come to, after 20 microseconds
    with torch._C._AutoDispatchBelowAutograd():
        return attention_forward(*arguments)  # type: ignore[no-any-return]


LIBRARY.impl("attention_forward", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("attention_forward", _differentiable, "Autograd")
LIBRARY.impl("attention_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("lit_eff::attention_forward", _empty_outputs, lib=LIBRARY)
torch.library.register_fake("lit_eff::attention_backward", _fake_backward, lib=LIBRARY)
