"""The multi-exit loss as an operator: opcheck, one graph under torch.compile, gradients without a copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_eff.kernels.cross_entropy import multi_exit_cross_entropy, operator
from tests.kernels.loss_cases import EVERYTHING, LossCase

pytestmark = pytest.mark.usefixtures("interpreter")


ALL = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def arguments(hiddens: list[Tensor], matrix_VC: Tensor, targets_N: Tensor) -> tuple[Any, ...]:
    exits = hiddens[0].shape[0] if hiddens[0].ndim == 3 else len(hiddens)
    numbers = (torch.float32, -100, 0.1, 0.01, 3.0, 0.4, 2.0, 8, None, None, 0, None, 130)
    return (hiddens, [matrix_VC], [], targets_N, None, [0] * exits, [-1] * exits, [0.5] * exits, *numbers)


@pytest.mark.parametrize("stacked", [False, True])
def test_opcheck(stacked: bool) -> None:
    inputs = LossCase(exits=2).draw(torch.float32)
    hiddens = inputs.hiddens
    if stacked:
        hiddens = [torch.stack([each.detach() for each in hiddens]).requires_grad_()]
    call = arguments(hiddens, inputs.matrices[0], inputs.targets_N)
    some = ("test_schema", "test_faketensor") if stacked else ALL
    torch.library.opcheck(operator.cross_entropy, call, test_utils=some)
    plain = arguments([each.detach() for each in hiddens], inputs.matrices[0].detach(), inputs.targets_N)
    torch.library.opcheck(operator.cross_entropy_gradients, (*plain, [True, False, True]), test_utils=some)
    gradients = [torch.randn(3, 5), torch.randn(2, 2, 2)]
    torch.library.opcheck(operator.scale_gradients, (gradients, torch.tensor(2.0)))


@pytest.mark.parametrize("stacked", [False, True])
def test_compiles_to_one_graph(stacked: bool) -> None:
    inputs = LossCase(exits=2, shared=False, biased=(0,), token_weights=True, options=EVERYTHING).draw(
        torch.float32
    )
    hidden: Any = inputs.hiddens
    if stacked:
        hidden = torch.stack([each.detach() for each in inputs.hiddens]).requires_grad_()
    leaves = [*([hidden] if stacked else hidden), *inputs.matrices, *inputs.biases]

    def step(hidden: Any) -> tuple[Tensor, Tensor]:
        scaled = hidden * 2.0 if stacked else [each * 2.0 for each in hidden]
        losses = inputs.ours(hiddens=scaled)
        return losses.loss * 3.0, losses.confidence_E

    loss, confidence_E = step(hidden)
    expected = torch.autograd.grad(loss, leaves)
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got, also_E = compiled(hidden)
    assert torch.equal(got, loss)
    assert torch.equal(also_E, confidence_E)
    for one, other in zip(torch.autograd.grad(got, leaves), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_gradient_that_was_made_is_the_gradient() -> None:
    """No copy of an output matrix's size is made in the backward pass."""
    inputs = LossCase(exits=2).draw(torch.float32)
    losses = inputs.ours()
    made = {each.data_ptr() for each in losses.loss.grad_fn.saved_tensors}  # type: ignore[union-attr]
    losses.loss.backward()
    assert inputs.matrices[0].grad is not None
    assert inputs.matrices[0].grad.data_ptr() in made


def test_statistics_have_no_gradient() -> None:
    inputs = LossCase(exits=2).draw(torch.float32)
    losses = multi_exit_cross_entropy(inputs.hiddens, inputs.matrices[0], inputs.targets_N)
    assert losses.loss.requires_grad
    assert not any(each.requires_grad for each in losses[1:])
