"""Cells of training: forward and backward, bfloat16, one batch of tokens cut into ever longer sequences.

FLOPs: forward 4 B H T^2 D, half of it when causal; backward 2.5 times the forward.

Shapes: B batch, T query length, S key length, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_eff.bench.attention_peers import Forward, Peer, attempt, peers, reason_of
from lit_eff.bench.measure import Stopwatch, interleaved, peak_extra_bytes
from lit_eff.bench.results import Measurement, timed, with_ratios
from lit_eff.kernels.attention import attention_reference

TOKENS = 16_384  # a batch, whatever the length
WIDTH = 2_048  # heads times head dim
# Relative error that a right result in bfloat16 stays far below, and a wrong mask or scale far above.
TOLERANCE = 0.02
# What CUDA says when a kernel has spoilt the process.
LOST = (
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "launch failure",
    "device-side assert",
)


@dataclass(frozen=True)
class TrainingCell:
    head_dim: int
    length: int
    causal: bool

    section = "training"

    @property
    def label(self) -> str:
        return f"dim {self.head_dim}, {self.length}, {'causal' if self.causal else 'full'}"

    @property
    def flops(self) -> float:
        return 4 * TOKENS * self.length * WIDTH / (2 if self.causal else 1)

    def tensors(self) -> list[Tensor]:
        """q, k, v (leaves) and dO."""
        shape = (TOKENS // self.length, self.length, WIDTH // self.head_dim, self.head_dim)
        generator = torch.Generator("cuda").manual_seed(0)
        q, k, v, dout = (
            torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=generator) for _ in range(4)
        )
        return [*(tensor.requires_grad_() for tensor in (q, k, v)), dout]

    def warm(self) -> None:
        """Compile whatever the contenders compile."""
        q, k, v, dout = self.tensors()
        for peer in peers():
            try:
                with peer.context():
                    out = peer.prepare(self.length, self.causal)(q, k, v)
                    torch.autograd.grad(out, (q, k, v), dout)
            except Exception:  # the run that follows says why
                continue

    def run(self, stopwatch: Stopwatch, rounds: int) -> list[Measurement]:
        tensors = self.tensors()
        exact = _exact(tensors, self.causal)
        forwards: dict[str, Callable[[], object]] = {}
        backwards: dict[str, Callable[[], object]] = {}
        found: dict[tuple[str, str], Measurement] = {}
        for peer in peers():
            for quantity in ("forward", "backward"):
                found[peer.name, quantity] = Measurement(
                    self.section, self.label, peer.name, quantity, "TFLOP/s", peer.ours
                )
            ready = self._ready(peer, tensors, exact, found)
            if "forward" in ready:
                forwards[peer.name] = ready["forward"]
            if "backward" in ready:
                backwards[peer.name] = ready["backward"]
        for quantity, functions, flops in (
            ("forward", forwards, self.flops),
            ("backward", backwards, 2.5 * self.flops),
        ):
            for name, sample in interleaved(functions, rounds, stopwatch).items():
                found[name, quantity] = timed(found[name, quantity], sample, flops / 1e9)
        return with_ratios(list(found.values()))

    def _ready(
        self,
        peer: Peer,
        tensors: Sequence[Tensor],
        exact: Sequence[Tensor],
        found: dict[tuple[str, str], Measurement],
    ) -> dict[str, Callable[[], object]]:
        """What may be timed of a peer: what ran and gave the right result. Notes memory and faults."""
        q, k, v, dout = tensors
        names = [(peer.name, quantity) for quantity in ("forward", "backward")]

        def note(name: tuple[str, str], reason: str, wrong: bool = False) -> None:
            found[name] = replace(found[name], unavailable=reason, wrong=wrong)

        forward: Forward | None = None
        ready: dict[str, Callable[[], object]] = {}
        try:
            with attempt() as caught, peer.context():
                forward = peer.prepare(self.length, self.causal)
                out = forward(q, k, v)
                error = relative_error(out[:1, :, :1], exact[0])
                if not error <= TOLERANCE:
                    note(names[0], f"wrong: the output is off by {error:.1%}", True)
                else:
                    ready["forward"] = _within(peer, lambda: forward(q, k, v))
                    extra = peak_extra_bytes(lambda: forward(q, k, v))
                    found[names[0]] = replace(found[names[0]], extra_bytes=extra)
        except Exception as error:
            raise_if_lost(error)
            for name in names:
                note(name, reason_of(error, caught))
            return ready
        backward = _within(peer, lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))
        try:
            grads: Sequence[Tensor] = backward()  # type: ignore[assignment]
            off = max(
                relative_error(got[:1, :, :1], true) for got, true in zip(grads, exact[1:], strict=True)
            )
            if not off <= TOLERANCE:
                note(names[1], f"wrong: a gradient is off by {off:.1%}", True)
                return ready
            del grads
            extra = peak_extra_bytes(backward)
            found[names[1]] = replace(found[names[1]], extra_bytes=extra)
            ready["backward"] = backward
        except Exception as error:
            raise_if_lost(error)
            note(names[1], reason_of(error))
        return ready


def _within(peer: Peer, function: Callable[[], object]) -> Callable[[], object]:
    def call() -> object:
        with peer.context():
            return function()

    return call


def raise_if_lost(error: Exception) -> None:
    """After such an error nothing more can run in this process: end here, not in a page of failures."""
    if any(text in str(error) for text in LOST):
        raise error


def _exact(tensors: Sequence[Tensor], causal: bool) -> list[Tensor]:
    """Output and gradients of the first row's first head, in float32."""
    q, k, v, dout = (tensor.detach()[:1, :, :1].float() for tensor in tensors)
    leaves = [tensor.requires_grad_() for tensor in (q, k, v)]
    out = attention_reference(*leaves, causal=causal)
    assert isinstance(out, Tensor)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def relative_error(got: Tensor, exact: Tensor) -> float:
    """Of the whole, in the Frobenius norm; NaN where anything is not finite."""
    error = float((got.detach().float() - exact).norm() / exact.norm())
    return error if math.isfinite(error) else math.nan


def cells() -> list[TrainingCell]:
    return [
        TrainingCell(head_dim, length, causal)
        for head_dim in (64, 128)
        for length in (1024, 4096, 16384)
        for causal in (False, True)
    ]
