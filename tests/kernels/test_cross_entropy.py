"""The multi-exit loss in the interpreter, against float64, with all its options, and what it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.kernels.cross_entropy import multi_exit_cross_entropy, operator
from tests.kernels.loss_cases import EVERYTHING, FEATURES, LossCase, LossInputs

SINGLE = [LossCase(options=options) for options in FEATURES.values()]
PAIRS = [
    LossCase(exits=2, options={**a, **b})
    for a, b in itertools.combinations(FEATURES.values(), 2)
    if not {*a} & {*b}
]
FORMS = [
    LossCase(),
    LossCase(exits=1),
    LossCase(exits=1, tokens=1, ignored=0),
    LossCase(exits=2, vocabulary=1),
    LossCase(exits=2, vocabulary=5003, tokens=3, ignored=2),
    LossCase(exits=2, vocabulary=20_001, tokens=2, ignored=0, options=EVERYTHING),
    LossCase(exits=1, vocabulary=66_000, tokens=1, ignored=0),
    LossCase(shared=False),
    LossCase(biased=(0, 2)),
    LossCase(token_weights=True),
    LossCase(exits=5, shared=False, biased=(1,), token_weights=True, options=EVERYTHING),
    LossCase(exits=1, options=EVERYTHING),
]


def check(inputs: LossInputs, **more: Any) -> None:
    got, exact = inputs.ours(**more), inputs.reference(torch.float64)
    for name, one, other in zip(got._fields, got, exact, strict=True):
        assert one.dtype == torch.float32, name
        torch.testing.assert_close(one.double(), other.double(), rtol=2e-5, atol=2e-6, msg=name)
    found, wanted = inputs.gradients(got, 2.5), inputs.gradients(exact, 2.5)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)


@pytest.mark.usefixtures("interpreter", "poisoned")
@pytest.mark.parametrize("case", SINGLE + PAIRS + FORMS, ids=str)
def test_float32_matches_float64(case: LossCase) -> None:
    check(case.draw(torch.float32))


@pytest.mark.usefixtures("interpreter", "poisoned")
@pytest.mark.parametrize("chunk", [1, 4, 10, 11, 100])
def test_chunks_change_nothing(chunk: int) -> None:
    inputs = LossCase(shared=False, biased=(1, 2), token_weights=True, options=EVERYTHING).draw(torch.float32)
    check(inputs, chunk=chunk)


@pytest.mark.usefixtures("interpreter")
@settings(max_examples=15, deadline=None)
@given(
    exits=st.integers(1, 3),
    tokens=st.integers(0, 9),
    vocabulary=st.integers(1, 700),
    chunk=st.integers(1, 9),
    options=st.sets(st.sampled_from(sorted(FEATURES))),
)
def test_any_shape(exits: int, tokens: int, vocabulary: int, chunk: int, options: set[str]) -> None:
    merged = {key: value for name in sorted(options) for key, value in FEATURES[name].items()}
    case = LossCase(exits, tokens, 8, vocabulary, options=merged)
    if case.options.get("ignore_index", 0) < vocabulary:
        check(case.draw(torch.float32), chunk=chunk)


@pytest.mark.usefixtures("interpreter", "poisoned")
@pytest.mark.parametrize("columns", [1, 127, 128, 133])
@pytest.mark.parametrize("kernels", [True, False])
def test_padding_takes_no_part(columns: int, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with weights cut off at ``columns``, whatever the rows after them hold; their gradient is zero."""
    monkeypatch.setattr(operator, "INTERPRETED", kernels)
    case = LossCase(biased=(0, 2), options=EVERYTHING)
    inputs = case.draw(torch.float32)
    inputs.targets_N = inputs.targets_N.where(inputs.targets_N < columns, -100)
    whole = [*inputs.matrices, *inputs.biases]
    with torch.no_grad():
        for leaf in whole:
            leaf[columns:] = 50.0  # would be every row's maximum
    got = inputs.ours(chunk=4, columns=columns)
    found = inputs.gradients(got, 2.5)
    inputs.matrices = [each[:columns].detach().requires_grad_() for each in inputs.matrices]
    inputs.biases = [each[:columns].detach().requires_grad_() for each in inputs.biases]
    exact = inputs.reference(torch.float64)
    for name, one, other in zip(got._fields, got, exact, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=2e-5, atol=2e-6, msg=name)
    for one, other in zip(found, inputs.gradients(exact, 2.5), strict=True):
        torch.testing.assert_close(one[: len(other)], other, rtol=1e-4, atol=2e-6)
        assert not one[len(other) :].any()


@pytest.mark.usefixtures("interpreter", "poisoned")
def test_float16_is_as_good_as_torch() -> None:
    """Gradients far below float16's smallest number survive until they are scaled."""
    inputs = LossCase(exits=2, tokens=64, vocabulary=3000, ignored=3).draw(torch.float16)
    got, exact = inputs.ours(chunk=40), inputs.reference(torch.float64)
    plain = inputs.reference(torch.float16)
    factor = 2.0**12  # as torch's GradScaler
    found, wanted = inputs.gradients(got, factor), inputs.gradients(exact, factor)
    theirs = inputs.gradients(plain, factor)
    for one, other, yardstick in zip(found, wanted, theirs, strict=True):
        allowed = 2 * (yardstick.double() - other).norm() + 1e-3 * other.norm()
        assert (one.double() - other).norm() <= allowed
        assert one.abs().max() > 0


@pytest.mark.usefixtures("interpreter", "poisoned")
def test_strides_of_any_kind() -> None:
    inputs = LossCase(exits=2).draw(torch.float32)
    expected = inputs.gradients(inputs.ours())
    stacked_NCE = torch.stack([hidden.detach() for hidden in inputs.hiddens], dim=2).requires_grad_()
    inputs.matrices = [inputs.matrices[0].detach().T.contiguous().T.requires_grad_()]
    inputs.targets_N = torch.stack([inputs.targets_N] * 2, dim=1)[:, 0]
    losses = inputs.ours(hiddens=list(stacked_NCE.unbind(2)))
    got_NCE, got_VC = torch.autograd.grad(losses.loss, [stacked_NCE, inputs.matrices[0]])
    torch.testing.assert_close(got_NCE[:, :, 0], expected[0])
    torch.testing.assert_close(got_NCE[:, :, 1], expected[1])
    torch.testing.assert_close(got_VC, expected[2])


@pytest.mark.usefixtures("interpreter", "poisoned")
def test_one_tensor_of_all_exits() -> None:
    inputs = LossCase().draw(torch.float32)
    expected = inputs.gradients(inputs.ours())
    hidden_ENC = torch.stack([hidden.detach() for hidden in inputs.hiddens]).requires_grad_()
    losses = inputs.ours(hiddens=hidden_ENC)
    got_ENC, got_VC = torch.autograd.grad(losses.loss, [hidden_ENC, inputs.matrices[0]])
    assert torch.equal(got_ENC, torch.stack(expected[:3]))
    assert torch.equal(got_VC, expected[3])


def test_without_kernels_a_cpu_runs_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "INTERPRETED", False)
    inputs = LossCase(shared=False, biased=(1,), token_weights=True, options=EVERYTHING).draw(torch.float32)
    losses, expected = inputs.ours(chunk=3), inputs.reference(torch.float32)
    for one, other in zip(losses, expected, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(inputs.gradients(losses), inputs.gradients(expected), strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("interpreter")
def test_default_exit_weights_are_the_mean() -> None:
    inputs = LossCase(exits=2, ignored=0).draw(torch.float32)
    losses = multi_exit_cross_entropy(inputs.hiddens, inputs.matrices[0], inputs.targets_N)
    separate = [F.cross_entropy(h @ inputs.matrices[0].T, inputs.targets_N) for h in inputs.hiddens]
    torch.testing.assert_close(losses.loss, (separate[0] + separate[1]) / 2)
    torch.testing.assert_close(losses.nll_E, torch.stack(separate).detach())


@pytest.mark.usefixtures("interpreter", "poisoned")
def test_only_asked_gradients() -> None:
    inputs = LossCase(exits=3, shared=False, biased=(0, 1)).draw(torch.float32)
    everything = inputs.gradients(inputs.ours())
    for frozen in (inputs.hiddens[0], inputs.matrices[1], inputs.biases[0]):
        frozen.requires_grad_(False)
    losses = inputs.ours()
    losses.loss.backward()
    for leaf, expected in zip(inputs.leaves, everything, strict=True):
        if leaf.requires_grad:
            assert leaf.grad is not None
            assert torch.equal(leaf.grad, expected)
        else:
            assert leaf.grad is None
    with torch.no_grad():
        silent = inputs.ours()
    assert not silent.loss.requires_grad
    assert torch.equal(silent.loss, losses.loss.detach())
    assert not losses.nll_E.requires_grad


@pytest.mark.usefixtures("interpreter", "poisoned")
def test_an_exit_of_weight_zero_gets_no_gradient_and_still_teaches() -> None:
    inputs = LossCase(exits=2, shared=False, options={"distillation": 0.5}).draw(torch.float32)
    losses = multi_exit_cross_entropy(
        inputs.hiddens, inputs.matrices, inputs.targets_N, exit_weights=[1.0, 0.0], distillation=0.5
    )
    found = torch.autograd.grad(losses.loss, inputs.leaves)
    assert found[1].abs().max() == 0
    assert found[3].abs().max() == 0
    assert found[0].abs().max() > 0
    assert losses.nll_E[1] > 0


@pytest.mark.usefixtures("interpreter", "poisoned")
def test_gradients_are_taken_once_and_scaled_by_what_comes_in() -> None:
    inputs = LossCase(exits=1).draw(torch.float32)
    losses = inputs.ours()
    plain = [each.clone() for each in torch.autograd.grad(losses.loss, inputs.leaves, retain_graph=True)]
    tripled = inputs.gradients(inputs.ours(), 3.0)
    for one, other in zip(plain, tripled, strict=True):
        torch.testing.assert_close(3.0 * one, other)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(losses.loss, inputs.leaves)


@pytest.mark.usefixtures("interpreter", "poisoned")
def test_targets_that_are_all_ignored_give_zero() -> None:
    inputs = LossCase().draw(torch.float32)
    inputs.targets_N[:] = -100
    losses = inputs.ours()
    assert losses.loss.item() == 0.0
    assert losses.accuracy_E.tolist() == [0.0] * 3
    for gradient in inputs.gradients(losses):
        assert gradient.abs().max() == 0


@pytest.mark.usefixtures("interpreter", "poisoned")
def test_logits_of_ignored_tokens_are_not_looked_at() -> None:
    inputs = LossCase(exits=2).draw(torch.float32)
    expected = inputs.ours().loss
    with torch.no_grad():
        for hidden in inputs.hiddens:
            hidden[::5] = torch.inf
    assert torch.equal(inputs.ours().loss, expected)


@pytest.mark.usefixtures("interpreter")
def test_what_is_not_a_number_shows() -> None:
    inputs = LossCase(exits=1).draw(torch.float32)
    with torch.no_grad():
        inputs.hiddens[0][1, 2] = torch.nan
    losses = inputs.ours()
    assert losses.loss.isnan()
    assert inputs.gradients(losses)[1].isnan().any()


@pytest.mark.usefixtures("interpreter")
def test_extreme_logits_stay_exact() -> None:
    """A target whose probability underflows has its finite loss; so has one beside a logit of -inf."""
    matrix = torch.tensor([[1.0], [-1.0], [0.5]])
    losses = multi_exit_cross_entropy([torch.tensor([[200.0]])], matrix, torch.tensor([1]))
    assert losses.loss.item() == pytest.approx(400.0)
    closed = multi_exit_cross_entropy(
        [torch.ones(1, 1)], matrix, torch.tensor([0]), bias_V=torch.tensor([0.0, -torch.inf, 0.0])
    )
    assert closed.loss.item() == pytest.approx(torch.tensor([1.0, 0.5]).logsumexp(0).item() - 1.0)


@pytest.mark.usefixtures("interpreter")
def test_equal_logits_count_as_the_first() -> None:
    hidden, matrix = torch.ones(2, 1), torch.tensor([[0.5], [2.0], [2.0], [1.0]] + [[2.0]] * 600)
    losses = multi_exit_cross_entropy([hidden], matrix, torch.tensor([1, 2]))
    assert losses.accuracy_E.tolist() == [0.5]
    assert losses.confidence_E.item() == pytest.approx(1 / (602 + 2.718281828**-1.5 + 2.718281828**-1), 1e-5)


@pytest.mark.usefixtures("interpreter")
def test_autocast_keeps_the_gradients_of_float32_parameters_wide() -> None:
    inputs = LossCase(exits=2).draw(torch.float32)
    with torch.autocast("cpu", torch.float16):
        losses = inputs.ours()
    found, exact = inputs.gradients(losses), inputs.gradients(inputs.reference(torch.float64))
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        assert 0 < (one - other).norm() <= 5e-3 * other.norm()


def wrong(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "hidden_ENC": torch.randn(2, 4, 8),
        "weight_VC": torch.randn(10, 8),
        "targets_N": torch.arange(4),
    }
    return arguments | changes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (wrong(hidden_ENC=torch.randn(4, 8)), r"got \(4, 8\)"),
        (wrong(hidden_ENC=[]), "no hidden states"),
        (wrong(hidden_ENC=[torch.randn(4, 8), torch.randn(5, 8)]), r"\(5, 8\) and \(4, 8\)"),
        (wrong(weight_VC=torch.randn(10, 7)), r"\(4, 8\) and \(10, 7\)"),
        (wrong(weight_VC=[torch.randn(10, 8)]), "1 entries of weight_VC"),
        (wrong(weight_VC=torch.randn(10, 8).half()), "weights of torch.float16"),
        (wrong(weight_VC=torch.randn(0, 8)), "vocabulary of 0"),
        (wrong(bias_V=torch.randn(9)), r"biases of shapes \(9,\)"),
        (wrong(exit_weights=[1.0]), "1 entries of exit_weights"),
        (wrong(targets_N=torch.arange(5)), r"targets_N must have shape \(4,\)"),
        (wrong(targets_N=torch.arange(4).int()), "targets_N is torch.int32"),
        (wrong(targets_N=torch.tensor([0, 1, 2, 10])), "targets from 0 to 10"),
        (wrong(targets_N=torch.tensor([0, -1, 2, 3])), "targets from -1 to 3"),
        (wrong(token_weights_N=torch.arange(4)), "token_weights_N is torch.int64"),
        (wrong(label_smoothing=1.5), "label_smoothing is 1.5"),
        (wrong(distillation=-0.1), "distillation is -0.1"),
        (wrong(z_loss=-1.0), "z_loss is -1.0"),
        (wrong(softcap=0.0), "softcap 0.0"),
        (wrong(temperature=0.0), "temperature 0.0"),
        (wrong(chunk=0), "chunk 0"),
        (wrong(columns=0), "columns is 0; expected 1 to 10"),
        (wrong(columns=11), "columns is 11; expected 1 to 10"),
        (wrong(columns=3), "targets from 0 to 3; expected 0 to 2"),
    ],
)
def test_bad_input_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        multi_exit_cross_entropy(**arguments)


def test_the_reference_is_torchs_cross_entropy() -> None:
    inputs = LossCase(exits=1, options={"label_smoothing": 0.2}).draw(torch.float64)
    logits = inputs.hiddens[0] @ inputs.matrices[0].T
    expected: Tensor = F.cross_entropy(logits, inputs.targets_N, label_smoothing=0.2) / 4
    torch.testing.assert_close(inputs.reference(torch.float64).loss, expected)
