"""The compiled multi-exit loss on a GPU: precision beside torch's own, large offsets, memory, no waiting."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_eff.bench.attention_rule import poisoned_memory
from lit_eff.bench.measure import peak_extra_bytes
from lit_eff.kernels.cross_entropy import ExitLosses, multi_exit_cross_entropy
from tests.kernels.loss_cases import EVERYTHING, FEATURES, LossCase, LossInputs

pytestmark = pytest.mark.gpu

CASES = [
    *(LossCase(2, 300, 64, 5003, options=options) for options in FEATURES.values()),
    LossCase(3, 500, 128, 50_257, token_weights=True),
    LossCase(1, 700, 64, 128_256, ignored=0),
    LossCase(2, 300, 80, 32_000, shared=False, biased=(0, 1), options=EVERYTHING),
    LossCase(4, 257, 64, 1000, biased=(3,), token_weights=True, options=EVERYTHING),
    LossCase(1, 1, 16, 1, ignored=0),
]


def poisoned(inputs: LossInputs, factor: float = 1.0, **more: Any) -> tuple[ExitLosses, list[Tensor]]:
    """Losses and gradients where memory starts as NaN."""
    with poisoned_memory():
        losses = inputs.ours(**more)
        return losses, inputs.gradients(losses, factor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_is_at_most_twice_torchs(case: LossCase, dtype: torch.dtype) -> None:
    """Against float64; the yardstick is PyTorch's in the input dtype. Two runs give the same bits."""
    inputs = case.draw(dtype, "cuda")
    factor = 2.0**10
    got, found = poisoned(inputs, factor, chunk=256)
    _, again = poisoned(inputs, factor, chunk=256)
    exact, plain = inputs.reference(torch.float64), inputs.reference(dtype)
    torch.testing.assert_close(got.loss.double(), exact.loss, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(got.nll_E, exact.nll_E, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(got.confidence_E, exact.confidence_E, rtol=2e-2, atol=1e-4)
    wanted, theirs = inputs.gradients(exact, factor), inputs.gradients(plain, factor)
    for one, same, other, yardstick in zip(found, again, wanted, theirs, strict=True):
        assert one.dtype == dtype
        assert torch.equal(one, same)
        true = other.double()
        # Of a vocabulary of one the gradient is zero, that is its softmax less one, up to rounding.
        allowed = 2 * (yardstick.double() - true).norm() + 1e-3 * true.norm() + 1e-6 * factor
        assert (one.double() - true).norm() <= allowed


def test_predictions_are_torchs() -> None:
    inputs = LossCase(2, 600, 64, 40_000, ignored=0).draw(torch.float32, "cuda")
    best = [(hidden @ inputs.matrices[0].T).argmax(-1) for hidden in inputs.hiddens]
    inputs.targets_N = torch.where(torch.arange(600, device="cuda") % 3 == 0, best[1], inputs.targets_N)
    losses = inputs.ours()
    assert losses.accuracy_E[1].item() == pytest.approx(1 / 3, abs=2e-3)
    agree = (best[0] == best[1]).float().mean().item()
    assert losses.agreement_E.tolist() == pytest.approx([agree, 1.0], abs=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("columns", "rows"), [(50_257, 50_304), (1000, 1024), (4097, 8192)])
def test_padding_takes_no_part(columns: int, rows: int, dtype: torch.dtype) -> None:
    """As with weights cut off at ``columns``; no gradient after them."""
    inputs = LossCase(2, 300, 64, rows, biased=(0,), options=EVERYTHING).draw(dtype, "cuda")
    inputs.targets_N = inputs.targets_N.where(inputs.targets_N < columns, -100)
    with torch.no_grad():
        for leaf in (*inputs.matrices, *inputs.biases):
            leaf[columns:] = 50.0  # would be every row's maximum
    got, found = poisoned(inputs, 2.0**10, chunk=128, columns=columns)
    inputs.matrices = [each[:columns].detach().requires_grad_() for each in inputs.matrices]
    inputs.biases = [each[:columns].detach().requires_grad_() for each in inputs.biases]
    expected, wanted = poisoned(inputs, 2.0**10, chunk=128)
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.confidence_E, expected.confidence_E, rtol=1e-3, atol=1e-5)
    for one, other in zip(found, wanted, strict=True):
        assert (one[: len(other)] - other).norm() <= 5e-3 * other.norm()
        assert not one[len(other) :].any()


def test_offsets_beyond_31_bits() -> None:
    """A chunk of 45,056 x 50,304 logits; rows by themselves do not depend on the chunk's size."""
    tokens, columns = 45_056, 50_304
    assert tokens * columns > 2**31
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(tokens, 64, device="cuda", generator=generator).bfloat16().requires_grad_()
    matrix = torch.randn(columns, 64, device="cuda", generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(columns, (tokens,), device="cuda", generator=generator)
    results = []
    for chunk in (tokens, 4096):
        losses = multi_exit_cross_entropy([hidden], matrix, targets, chunk=chunk)
        results.append((losses.loss.detach(), *torch.autograd.grad(losses.loss, [hidden, matrix])))
    for one, other in zip(*results, strict=True):
        assert (one.float() - other.float()).norm() <= 2e-3 * other.float().norm()


@pytest.mark.parametrize(("exits", "limit"), [(1, 0.3e9), (12, 0.6e9)])
def test_memory_beyond_inputs_and_gradients(exits: int, limit: float) -> None:
    """The float32 sums count as the gradient of the matrix."""
    hidden = torch.randn(exits, 8192, 2048, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    matrix = torch.randn(50_304, 2048, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(50_304, (8192,), device="cuda")

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(multi_exit_cross_entropy(hidden, matrix, targets).loss, [hidden, matrix])

    step()  # cuBLAS keeps a workspace from then on
    assert peak_extra_bytes(step) - 2 * matrix.numel() <= limit


def test_the_host_never_waits_and_a_graph_can_be_captured() -> None:
    inputs = LossCase(2, 700, 64, 5003, biased=(0,), token_weights=True, options=EVERYTHING).draw(
        torch.bfloat16, "cuda"
    )
    expected = inputs.gradients(inputs.ours(chunk=256), 3.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        inputs.gradients(inputs.ours(chunk=256), 3.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        inputs.gradients(inputs.ours(chunk=256), 3.0)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = inputs.gradients(inputs.ours(chunk=256), 3.0)
    for gradient in captured:
        gradient.zero_()
    graph.replay()
    for one, other in zip(captured, expected, strict=True):
        assert torch.equal(one, other)


def test_inductor_sees_one_operator() -> None:
    inputs = LossCase(2, 300, 64, 5003, options=EVERYTHING).draw(torch.bfloat16, "cuda")

    def step(*hiddens: Tensor) -> Tensor:
        return inputs.ours(hiddens=[each * 2.0 for each in hiddens]).loss * 3.0

    loss = step(*inputs.hiddens)
    expected = torch.autograd.grad(loss, inputs.leaves)
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True)(*inputs.hiddens)
    torch.testing.assert_close(compiled, loss)
    for one, other in zip(torch.autograd.grad(compiled, inputs.leaves), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-5)


def test_a_target_outside_the_vocabulary_spoils_the_loss() -> None:
    inputs = LossCase(1, 30, 16, 1000).draw(torch.float32, "cuda")
    inputs.targets_N[7] = 1000
    losses = inputs.ours()
    assert losses.loss.isnan()
    assert all(gradient.isnan().any() for gradient in inputs.gradients(losses))


def test_training_takes_the_kernels() -> None:
    pytest.importorskip("lightning")
    from lit_eff.training.losses import OutputHead, chunked_exit_loss

    inputs = LossCase(2, 100, 64, 1000, ignored=3).draw(torch.float32, "cuda")
    head = OutputHead(inputs.matrices[0])
    with torch.autocast("cuda", torch.bfloat16):
        loss, nll_E = chunked_exit_loss(inputs.hiddens, [head, head], inputs.targets_N, [0.25, 0.5])
        losses: Any = inputs.ours()
    assert loss.grad_fn is not None
    assert type(loss.grad_fn).__name__ == type(losses.loss.grad_fn).__name__
    assert torch.equal(loss, losses.loss)
    assert torch.equal(nll_E, losses.nll_E)
