"""The chunked multi-exit loss against separately computed losses in float64, gradients too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_eff.kernels.cross_entropy import obstacle
from lit_eff.training import losses
from lit_eff.training.losses import (
    Distillation,
    OutputHead,
    chunked_exit_loss,
    chunked_statistics,
    exit_loss_from_logits,
    statistics_from_logits,
)

N, C, V = 37, 12, 29


class Case:
    """Three exits: the first and the last share a matrix and a bias, the second owns a matrix."""

    def __init__(
        self, dtype: torch.dtype = torch.float64, softcap: float | None = None, device: str = "cpu"
    ) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            values = torch.randn(shape, dtype=torch.float64, generator=generator)
            return values.to(device, dtype).requires_grad_()

        self.hiddens = [random(N, C) for _ in range(3)]
        self.matrices = [random(V, C), random(V, C)]
        self.bias = random(V)
        shared = OutputHead(self.matrices[0], self.bias)
        self.heads = [shared, OutputHead(self.matrices[1]), shared]
        self.targets = torch.randint(0, V, (N,), generator=generator).to(device)
        self.targets[::6] = -100
        self.weights = [0.2, 0.3, 0.5]
        self.softcap = softcap

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.hiddens, *self.matrices, self.bias]

    def logits(self) -> list[Tensor]:
        logits = [F.linear(hidden, *head) for hidden, head in zip(self.hiddens, self.heads, strict=True)]
        return (
            logits if self.softcap is None else [self.softcap * torch.tanh(x / self.softcap) for x in logits]
        )

    def chunked(self, **settings: object) -> tuple[Tensor, Tensor]:
        return chunked_exit_loss(
            self.hiddens, self.heads, self.targets, self.weights, softcap=self.softcap, **settings
        )


@pytest.mark.parametrize("chunk", [1, 8, 37, 100, None])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_equals_the_sum_of_separately_computed_losses(chunk: int | None, softcap: float | None) -> None:
    case = Case(softcap=softcap)
    loss, nll = case.chunked(chunk=chunk)
    separate = [F.cross_entropy(logits, case.targets, ignore_index=-100) for logits in case.logits()]
    torch.testing.assert_close(nll, torch.stack(separate).detach(), rtol=1e-12, atol=1e-12)
    expected = sum(w * one for w, one in zip(case.weights, separate, strict=True))
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(loss * 3.5, case.parameters)
    wanted = torch.autograd.grad(expected * 3.5, case.parameters)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_distillation(softcap: float | None, temperature: float) -> None:
    case = Case(softcap=softcap)
    distillation = Distillation(0.7, temperature)
    loss, nll = case.chunked(distillation=distillation, chunk=8)
    logits = case.logits()
    valid = case.targets != -100
    teacher = (logits[-1].detach() / temperature).softmax(-1)[valid]
    expected = case.weights[2] * F.cross_entropy(logits[2], case.targets)
    for index in (0, 1):
        student = (logits[index] / temperature).softmax(-1)[valid]
        kl = (teacher * (teacher / student).log()).sum(-1).mean()
        both = 0.3 * F.cross_entropy(logits[index], case.targets) + 0.7 * temperature**2 * kl
        expected = expected + case.weights[index] * both
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    also, nll_too = exit_loss_from_logits(logits, case.targets, case.weights, distillation)
    torch.testing.assert_close(also, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(nll, nll_too, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(loss, case.parameters)
    for one, other in zip(found, torch.autograd.grad(expected, case.parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


def test_padding_of_the_matrices_takes_no_part() -> None:
    case, cut = Case(), 24
    case.targets = case.targets.where(case.targets < cut, -100)
    loss, nll = case.chunked(columns=cut)
    logits = [each[:, :cut] for each in case.logits()]
    expected, separate = exit_loss_from_logits(logits, case.targets, case.weights)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nll, separate)
    found, wanted = (torch.autograd.grad(each, case.parameters) for each in (loss, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_bfloat16_errs_no_more_than_twice_as_much_as_torch() -> None:
    exact = Case()
    wanted = torch.autograd.grad(exact.chunked()[0], exact.parameters)
    errors = []
    for chunked in (True, False):
        case = Case(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            if chunked:
                loss, _ = case.chunked(chunk=8)
            else:
                loss, _ = exit_loss_from_logits(case.logits(), case.targets, case.weights)
        assert loss.dtype == torch.float32
        found = torch.autograd.grad(loss, case.parameters)
        errors.append([(one - other).abs().max().item() for one, other in zip(found, wanted, strict=True)])
    for ours, theirs in zip(*errors, strict=True):
        assert ours <= 2 * theirs + 1e-4


def test_only_asked_gradients_and_frozen_matrices() -> None:
    case = Case()
    for tensor in (case.matrices[0], case.bias, case.hiddens[2]):
        tensor.requires_grad_(False)
    loss, _ = case.chunked()
    loss.backward()
    assert case.matrices[0].grad is None
    assert case.hiddens[2].grad is None
    assert case.matrices[1].grad is not None
    with torch.no_grad():
        silent, _ = case.chunked()
    assert not silent.requires_grad
    torch.testing.assert_close(silent, loss.detach())


def test_targets_that_are_all_ignored_give_zero() -> None:
    case = Case()
    case.targets[:] = -100
    for loss, nll in (case.chunked(), exit_loss_from_logits(case.logits(), case.targets, case.weights)):
        assert loss.item() == 0.0
        assert nll.tolist() == [0.0, 0.0, 0.0]


def test_extreme_logits_stay_exact() -> None:
    """A target whose probability underflows still has its finite loss."""
    hidden = torch.tensor([[200.0]])
    head = OutputHead(torch.tensor([[1.0], [-1.0], [0.5]]))
    loss, _ = chunked_exit_loss([hidden], [head], torch.tensor([1]), [1.0])
    assert loss.item() == 400.0


def test_logits_of_a_chunk_alone_are_held() -> None:
    """Peak memory of the loss is a few chunks of logits, not exits x tokens x vocabulary."""
    tokens, width, vocabulary, chunk = 1024, 4, 5000, 64
    hiddens = [torch.randn(tokens, width, requires_grad=True) for _ in range(3)]
    head = OutputHead(torch.randn(vocabulary, width, requires_grad=True))
    targets = torch.randint(0, vocabulary, (tokens,))
    sizes: list[int] = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(
                x.numel() for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, Tensor)
            )
            return out

    with Largest():
        loss, _ = chunked_exit_loss(hiddens, [head] * 3, targets, [1.0] * 3, chunk=chunk)
        loss.backward()
    assert max(sizes) == chunk * vocabulary


def test_statistics() -> None:
    case = Case(softcap=3.0)
    logits = case.logits()
    whole = statistics_from_logits(logits, case.targets)
    pieces = chunked_statistics(case.hiddens, case.heads, case.targets, softcap=3.0, chunk=8)
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, other, check_dtype=False)
    for index in range(3):
        probabilities = logits[index].softmax(-1)
        nll = F.cross_entropy(logits[index], case.targets, reduction="none", ignore_index=-100)
        torch.testing.assert_close(whole.nll_EN[index], nll.detach())
        confidence, prediction = probabilities.max(-1)
        torch.testing.assert_close(whole.confidence_EN[index], confidence.detach())
        torch.testing.assert_close(whole.prediction_EN[index], prediction)


@pytest.mark.parametrize("distillation", [None, Distillation(0.7, 2.5)])
def test_the_kernels_take_its_place(
    monkeypatch: pytest.MonkeyPatch, distillation: Distillation | None
) -> None:
    """The same loss and gradients behind the same signature: compiled on a GPU, else interpreted."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if obstacle(device) is not None:
        pytest.skip("the kernels are compiled here; test_cross_entropy_gpu tests them")
    case = Case(torch.float32, softcap=3.0, device=device)
    monkeypatch.setattr(losses, "_fuses", lambda hidden: False)
    loss, nll_E = case.chunked(distillation=distillation, chunk=16)
    expected = torch.autograd.grad(loss, case.parameters)
    monkeypatch.setattr(losses, "_fuses", lambda hidden: True)
    fused, fused_nll_E = case.chunked(distillation=distillation, chunk=16)
    assert type(fused.grad_fn) is not type(loss.grad_fn)
    torch.testing.assert_close(fused, loss)
    torch.testing.assert_close(fused_nll_E, nll_E)
    for one, other in zip(torch.autograd.grad(fused, case.parameters), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
