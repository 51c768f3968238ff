"""Cells of the multi-exit loss: forward and backward of several exits through one output matrix, bfloat16.

FLOPs: 6 N C V an exit. Extra memory is the peak beyond inputs and gradients; where the gradient of the matrix
is added up in float32, that counts as the gradient.

Shapes: N tokens, C model dim, V vocabulary, E exits.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_eff.bench.attention_peers import UnavailableError, attempt, reason_of
from lit_eff.bench.attention_training import raise_if_lost, relative_error
from lit_eff.bench.measure import Stopwatch, interleaved, peak_extra_bytes
from lit_eff.bench.results import Measurement, timed, with_ratios
from lit_eff.kernels.cross_entropy import multi_exit_cross_entropy

TOLERANCE = 0.02  # relative error that a right result in bfloat16 stays below
SAMPLE = 256  # tokens, and columns, whose gradients are compared

Loss = Callable[[Sequence[Tensor], Tensor, Tensor], Tensor]  # hidden states, matrix, targets -> mean of exits
OneLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class LossPeer:
    """``prepare()`` gives the loss, or raises UnavailableError."""

    name: str
    prepare: Callable[[], Loss]
    ours: bool = False
    wide: bool = False  # adds up the matrix's gradient in float32


def each_exit(one: OneLoss) -> Loss:
    """A loss of one exit, as often as there are exits."""

    def loss(hiddens: Sequence[Tensor], weight_VC: Tensor, targets_N: Tensor) -> Tensor:
        return torch.stack([one(hidden_NC, weight_VC, targets_N) for hidden_NC in hiddens]).mean()

    return loss


def ours(hiddens: Sequence[Tensor], weight_VC: Tensor, targets_N: Tensor) -> Tensor:
    return multi_exit_cross_entropy(hiddens, weight_VC, targets_N).loss


def eager(hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden_NC, weight_VC), targets_N)


@functools.cache
def compiled() -> OneLoss:
    return torch.compile(eager, dynamic=False)


def liger() -> OneLoss:
    loss = _imported("liger_kernel.transformers", "liger-kernel").LigerFusedLinearCrossEntropyLoss()
    return lambda hidden_NC, weight_VC, targets_N: loss(weight_VC, hidden_NC, targets_N)


def cut_cross_entropy() -> OneLoss:
    function = _imported("cut_cross_entropy", "cut-cross-entropy").linear_cross_entropy
    return lambda hidden_NC, weight_VC, targets_N: function(hidden_NC, weight_VC, targets_N)


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # any part of its stack may be missing or too old
        reason = f"{module} does not import ({reason_of(error)}); pip install {package}"
        raise UnavailableError(reason) from None


def peers() -> list[LossPeer]:
    return [
        LossPeer("ours", lambda: ours, ours=True, wide=True),
        LossPeer("torch.compile", lambda: each_exit(compiled())),
        LossPeer("Liger", lambda: each_exit(liger())),
        LossPeer("cut-cross-entropy", lambda: each_exit(cut_cross_entropy())),
        LossPeer("eager", lambda: each_exit(eager)),
    ]


@dataclass(frozen=True)
class LossCell:
    exits: int
    tokens: int = 8_192
    width: int = 2_048
    vocabulary: int = 50_304

    section = "loss"

    @property
    def label(self) -> str:
        return f"{self.exits} exits" if self.exits > 1 else "1 exit"

    @property
    def flops(self) -> float:
        return 6 * self.exits * self.tokens * self.width * self.vocabulary

    def tensors(self) -> tuple[list[Tensor], Tensor, Tensor]:
        """Hidden states and matrix (leaves), and targets."""
        generator = torch.Generator("cuda").manual_seed(0)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            values = torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=generator)
            return (values * scale).requires_grad_()

        hiddens = [draw(self.tokens, self.width) for _ in range(self.exits)]
        matrix_VC = draw(self.vocabulary, self.width, scale=self.width**-0.5)
        targets_N = torch.randint(
            self.vocabulary, (self.tokens,), device="cuda", generator=generator, dtype=torch.int64
        )
        return hiddens, matrix_VC, targets_N

    def warm(self) -> None:
        """Compile whatever the contenders compile."""
        hiddens, matrix_VC, targets_N = self.tensors()
        for peer in peers():
            try:
                torch.autograd.grad(peer.prepare()(hiddens[:1], matrix_VC, targets_N), [matrix_VC])
            except Exception:  # the run that follows says why
                continue

    def run(self, stopwatch: Stopwatch, rounds: int) -> list[Measurement]:
        tensors = self.tensors()
        exact = _exact(*tensors)
        found: dict[str, Measurement] = {}
        steps: dict[str, Callable[[], object]] = {}
        for peer in peers():
            found[peer.name] = Measurement(
                self.section, self.label, peer.name, "forward + backward", "TFLOP/s", peer.ours
            )
            self._ready(peer, tensors, exact, found, steps)
        # Some take seconds a step with many exits: fewer rounds, of everyone alike.
        rounds = max(3, rounds // self.exits)
        for name, sample in interleaved(steps, rounds, stopwatch).items():
            found[name] = timed(found[name], sample, self.flops / 1e9)
        return with_ratios(list(found.values()))

    def _ready(
        self,
        peer: LossPeer,
        tensors: tuple[list[Tensor], Tensor, Tensor],
        exact: Sequence[Tensor],
        found: dict[str, Measurement],
        steps: dict[str, Callable[[], object]],
    ) -> None:
        """Note what may be timed of a peer: what ran and gave the right result; its memory; its fault."""
        hiddens, matrix_VC, targets_N = tensors

        def note(reason: str, wrong: bool = False) -> None:
            found[peer.name] = replace(found[peer.name], unavailable=reason, wrong=wrong)

        try:
            with attempt():
                loss = peer.prepare()

                def step() -> tuple[Tensor, ...]:
                    return torch.autograd.grad(loss(hiddens, matrix_VC, targets_N), [*hiddens, matrix_VC])

                gradients = step()
                got = [gradients[0][:SAMPLE], gradients[-1][:SAMPLE]]
                off = max(relative_error(one, other) for one, other in zip(got, exact, strict=True))
                del gradients, got
                if not off <= TOLERANCE:
                    note(f"wrong: a gradient is off by {off:.1%}", True)
                    return
                extra = peak_extra_bytes(step)
                if peer.wide:
                    extra -= 2 * matrix_VC.numel()  # the float32 sums in place of the bfloat16 gradient
                found[peer.name] = replace(found[peer.name], extra_bytes=extra)
                steps[peer.name] = step
        except Exception as error:
            raise_if_lost(error)
            note(reason_of(error))
            torch.cuda.empty_cache()


def _exact(hiddens: Sequence[Tensor], matrix_VC: Tensor, targets_N: Tensor) -> list[Tensor]:
    """Gradients of the first tokens of the first exit, and of the matrix's first rows, in float32."""
    exits, tokens = len(hiddens), targets_N.numel()
    weight_VC = matrix_VC.detach().float()
    rows_VC = torch.zeros(SAMPLE, weight_VC.shape[1], device=weight_VC.device)
    first_NC = None
    for hidden_NC in hiddens:
        for start in range(0, tokens, 2048):
            wide_nC = hidden_NC.detach()[start : start + 2048].float()
            gradient_nV = (wide_nC @ weight_VC.T).softmax(-1)
            index_n1 = targets_N[start : start + 2048, None]
            gradient_nV.scatter_add_(1, index_n1, gradient_nV.new_full(index_n1.shape, -1.0))
            gradient_nV /= tokens * exits
            rows_VC += gradient_nV[:, :SAMPLE].T @ wide_nC
            if first_NC is None:
                first_NC = gradient_nV[:SAMPLE] @ weight_VC
    assert first_NC is not None
    return [first_NC, rows_VC]


def cells() -> list[LossCell]:
    return [LossCell(exits) for exits in (1, 3, 12)]
