"""The implementations of attention that are timed beside each other, each under one name and one signature.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lit_eff.errors import UserError
from lit_eff.kernels.attention import attention
from lit_eff.kernels.attention.paths import use_path

SDPA = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
}
Forward = Callable[[Tensor, Tensor, Tensor], Tensor]  # q (B, T, H, D), k and v (B, S, K, D) -> (B, T, H, D)


class UnavailableError(Exception):
    """A contender cannot run here; the message is the reason, in one line."""


@dataclass(frozen=True)
class Peer:
    """One implementation.

    ``prepare(length, causal)`` gives a differentiable forward for queries and keys of one length (the masks
    made), or raises UnavailableError. Calls and their backward run within ``context()``.
    """

    name: str
    prepare: Callable[[int, bool], Forward]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    ours: bool = False


@contextmanager
def attempt() -> Iterator[list[warnings.WarningMessage]]:
    """Collect warnings: SDPA tells in them why a kernel refuses."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def reason_of(error: Exception, caught: Sequence[warnings.WarningMessage] = ()) -> str:
    """The first line of an error, or of the first warning that gives a reason; short enough for a note."""
    texts = [str(each.message) for each in caught]
    reasons = [each for each in texts if "not used because" not in each and "disabled" not in each]
    sdpa_refused = "scaled_dot_product_attention" in str(error) or "No available kernel" in str(error)
    text = reasons[0] if sdpa_refused and reasons else str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(" (Triggered internally")[0][:160]


def sdpa(backend: SDPBackend, *, causal: bool = False, mask: Tensor | None = None) -> Forward:
    """One of SDPA's own kernels, on views of our layout; it refuses what it cannot do."""

    def forward(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> Tensor:
        q_BHTD, k_BKSD, v_BKSD = (x.transpose(1, 2) for x in (q_BTHD, k_BSKD, v_BSKD))
        grouped = q_BHTD.shape[1] != k_BKSD.shape[1]
        with sdpa_kernel(backend):
            out_BHTD = F.scaled_dot_product_attention(
                q_BHTD, k_BKSD, v_BKSD, mask, is_causal=causal, enable_gqa=grouped
            )
        return out_BHTD.transpose(1, 2)

    return forward


@functools.cache
def compiled_flex() -> Callable[..., Tensor]:
    from torch._dynamo import config as tracing
    from torch._functorch import config as differentiation
    from torch.nn.attention.flex_attention import flex_attention

    tracing.recompile_limit = 256  # one compiled kernel a shape is what this benchmark wants
    differentiation.donated_buffer = False  # the same backward is to run again and again
    return torch.compile(flex_attention, dynamic=False)


def flex(length: int, causal: bool) -> Forward:
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return t >= s

    mask = create_block_mask(sees, None, None, length, length, device="cuda") if causal else None

    def forward(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> Tensor:
        tensors = [x.transpose(1, 2) for x in (q_BTHD, k_BSKD, v_BSKD)]
        grouped = q_BTHD.shape[2] != k_BSKD.shape[2]
        return compiled_flex()(*tensors, block_mask=mask, enable_gqa=grouped).transpose(1, 2)

    return forward


def flash4(causal: bool) -> Forward:
    """flash-attn 4, written in CuTe; causal is bottom-right there too."""
    # Its compiled kernels are kept on disk only if asked, before the import.
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    try:
        function = importlib.import_module("flash_attn.cute").flash_attn_func
    except Exception as error:  # any part of its stack may be missing or too old
        reason = f"flash_attn.cute does not import ({reason_of(error)}); pip install --pre flash-attn-4"
        raise UnavailableError(reason) from None

    def forward(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> Tensor:
        result = function(q_BTHD, k_BSKD, v_BSKD, causal=causal)
        out_BTHD: Tensor = result[0] if isinstance(result, tuple) else result
        return out_BTHD

    return forward


def ours(causal: bool) -> Forward:
    def forward(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> Tensor:
        try:
            return attention(q_BTHD, k_BSKD, v_BSKD, causal=causal)  # type: ignore[return-value]
        except UserError as error:
            raise UnavailableError(reason_of(error)) from None

    return forward


def peers() -> list[Peer]:
    """Everyone, ours first; whether each can run shows when it is prepared and called."""

    def own(path: str) -> Peer:
        return Peer(f"ours {path}", lambda _, causal: ours(causal), lambda: use_path(path), ours=True)

    def torchs(name: str) -> Peer:
        return Peer(name, lambda _, causal: sdpa(SDPA[name], causal=causal))

    return [
        own("hopper"),
        own("portable"),
        *map(torchs, SDPA),
        Peer("FlexAttention", flex),
        Peer("flash-attn 4", lambda _, causal: flash4(causal)),
    ]
