"""Exit confidence in the interpreter: values, the exit rule, ties, row invariance, refusals."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.kernels.confidence import (
    MEASURES,
    NEVER,
    ExitConfidence,
    exit_confidence,
    exit_confidence_reference,
)
from lit_eff.kernels.confidence.io_model import confidence_traffic
from lit_eff.kernels.linear import Norm, skinny_linear
from lit_eff.kernels.linear.io_model import LinearShape
from lit_eff.kernels.linear.plan import Plan
from lit_eff.runtime.confidence import LOGIT_MEASURES
from lit_eff.runtime.exit_rule import ExitRule
from tests.kernels.linear_cases import LinearCase, widened

CASES = [
    LinearCase(5, 100, 200),
    LinearCase(1, 64, 64),
    LinearCase(17, 33, 70, bias=True, norm="rms"),
    LinearCase(40, 48, 129, norm="layer"),
    LinearCase(3, 128, 90, groups=2),
    LinearCase(3, 8, 1),
    LinearCase(2, 8, 2),
]


def draw(case: LinearCase, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    arguments = case.draw(dtype)
    arguments.pop("activation")
    names = {"x_NC": "hidden_NC", "weight_OC": "weight_VC"}
    return {names.get(name, name): value for name, value in arguments.items()}


def assert_close(got: ExitConfidence, expected: ExitConfidence, tolerance: float = 2e-5) -> None:
    assert torch.equal(got.token_N, expected.token_N)
    for name in ("probability_N", "gap_N", "entropy_N", "lse_N"):
        ours, exact = getattr(got, name), getattr(expected, name)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance, msg=name)


def same(got: ExitConfidence, expected: ExitConfidence) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.usefixtures("interpreter", "poisoned", "planned")
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_matches_float64(case: LinearCase, softcap: float | None) -> None:
    arguments = draw(case) | {"softcap": softcap}
    exact = exit_confidence_reference(**widened(arguments), accumulate=torch.float64)
    assert_close(exit_confidence(**arguments), exact)


@pytest.mark.usefixtures("interpreter", "poisoned")
def test_float16_hidden_states() -> None:
    arguments = draw(LinearCase(5, 100, 200, norm="rms_plain"), torch.float16)
    exact = exit_confidence_reference(**arguments, accumulate=torch.float64)
    assert_close(exit_confidence(**arguments), exact, 1e-4)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("vocabulary", [1, 2, 150])
def test_exits_are_those_of_the_rule(measure: Any, vocabulary: int) -> None:
    """The flag is `ExitRule.should_exit`'s on the same logits, each row at its own threshold."""
    arguments = draw(LinearCase(12, 64, vocabulary))
    logits = skinny_linear(arguments["hidden_NC"], arguments["weight_VC"]).numpy()
    confidence = LOGIT_MEASURES[measure](logits)
    steps = np.tile([-1e-3, 1e-3, np.inf], 4).astype(np.float32)
    thresholds = torch.from_numpy(np.clip(confidence + steps, 0.0, None).astype(np.float32))
    got = exit_confidence(**arguments, measure=measure, thresholds=thresholds)
    assert got.exits_N.tolist() == (confidence >= thresholds.numpy()).tolist()
    assert got.exits_N.tolist() == ([True, False, False] * 4)
    rule = ExitRule(measure, (None,))
    never = exit_confidence(**arguments, measure=measure)
    assert never.exits_N.tolist() == rule.should_exit(0, confidence, 0).tolist() == [False] * 12


@pytest.mark.usefixtures("interpreter")
def test_a_threshold_of_one_can_be_reached() -> None:
    """And so 1 is not the never-exit value."""
    hidden, weight = torch.ones(2, 4), torch.tensor([[100.0] * 4, [0.0] * 4])
    assert exit_confidence(hidden, weight, thresholds=1.0).exits_N.all()
    assert not exit_confidence(hidden, weight, thresholds=NEVER).exits_N.any()
    assert NEVER == math.inf == ExitRule(thresholds=(None,)).threshold(0, 0)


@pytest.mark.usefixtures("interpreter", "planned")
def test_ties_go_to_the_lowest_token() -> None:
    weight = torch.randn(200, 32)
    for first, second in ((3, 7), (3, 180), (64, 150), (0, 199)):
        tied = weight.clone()
        tied[first] = tied[second] = 5 * torch.ones(32)
        got = exit_confidence(torch.ones(1, 32), tied)
        assert got.token_N.tolist() == [first]
        assert got.gap_N.tolist() == [0.0]
    equal = exit_confidence(torch.ones(3, 32), torch.ones(130, 32))
    assert equal.token_N.tolist() == [0, 0, 0]
    torch.testing.assert_close(equal.entropy_N, torch.full((3,), math.log(130)))


@pytest.mark.usefixtures("interpreter", "planned")
def test_token_is_the_linears_argmax() -> None:
    arguments = draw(LinearCase(30, 96, 500, norm="rms"))
    logits = skinny_linear(
        arguments["hidden_NC"], arguments["weight_VC"], norm=arguments["norm"], out_dtype=torch.float32
    )
    assert torch.equal(exit_confidence(**arguments).token_N, logits.argmax(dim=1))


@pytest.mark.usefixtures("interpreter")
def test_extreme_logits() -> None:
    """Large ones overflow nothing; minus infinity has no probability."""
    weight = torch.zeros(100, 4)
    weight[:, 0] = torch.linspace(-3e4, 3e4, 100)
    got = exit_confidence(torch.ones(1, 4), weight)
    assert got.token_N.item() == 99
    assert got.probability_N.item() == 1.0
    assert got.entropy_N.item() == 0.0
    assert got.lse_N.item() == 3e4
    bias = torch.full((100,), -math.inf)
    bias[[20, 70]] = 0.0
    got = exit_confidence(torch.zeros(1, 4), weight, bias=bias)
    assert got.token_N.item() == 20
    torch.testing.assert_close(
        torch.stack(list(got[1:5])).flatten(), torch.tensor([0.5, 0.0, *[math.log(2)] * 2])
    )


@pytest.mark.usefixtures("interpreter")
def test_bfloat16_is_refused_in_the_interpreter() -> None:
    with pytest.raises(UserError, match="interpreter computes bfloat16 products wrongly; use float32"):
        exit_confidence(**draw(CASES[0], torch.bfloat16))


@pytest.mark.usefixtures("row_exact_interpreter", "planned")
def test_rows_do_not_depend_on_their_neighbours() -> None:
    """Any number of rows, in any place, in one row tile or several."""
    arguments = draw(LinearCase(70, 50, 150, norm="layer", bias=True)) | {"softcap": 4.0}
    thresholds = torch.rand(70)
    whole = exit_confidence(**arguments, thresholds=thresholds)
    for first, count in ((0, 1), (7, 1), (69, 1), (3, 16), (20, 17), (5, 40)):
        rows = slice(first, first + count)
        cut = arguments | {"hidden_NC": arguments["hidden_NC"][rows]}
        got = exit_confidence(**cut, thresholds=thresholds[rows])
        assert same(got, ExitConfidence(*(each[rows] for each in whole)))


def test_the_matrix_is_read_once() -> None:
    shape = LinearShape(16, 2048, 128256)
    blocks, join = confidence_traffic(shape, Plan(64, 1, 64, 4, 4))
    matrix = 2 * 128256 * 2048
    assert blocks.reads["weight"] == matrix
    assert blocks.written_bytes + join.total < 0.01 * matrix


@pytest.mark.usefixtures("interpreter")
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 35),
    channels=st.integers(1, 80),
    vocabulary=st.integers(1, 300),
    norm=st.sampled_from([None, "rms", "layer"]),
    softcap=st.sampled_from([None, 0.5, 30.0]),
)
def test_any_sizes(
    rows: int, channels: int, vocabulary: int, norm: str | None, softcap: float | None
) -> None:
    arguments = draw(LinearCase(rows, channels, vocabulary, norm=norm)) | {"softcap": softcap}
    exact = exit_confidence_reference(**widened(arguments), accumulate=torch.float64)
    got = exit_confidence(**arguments)
    ours = {name: each for name, each in got._asdict().items() if name not in ("token_N", "exits_N")}
    for name, each in ours.items():  # two near-equal logits may swap their order
        torch.testing.assert_close(each.double(), getattr(exact, name), rtol=5e-5, atol=5e-5)


@pytest.mark.usefixtures("interpreter")
def test_no_rows() -> None:
    assert [each.shape for each in exit_confidence(torch.randn(0, 8), torch.randn(4, 8))] == [(0,)] * 6


@pytest.mark.usefixtures("interpreter")
def test_operator_check_and_tracing() -> None:
    from lit_eff.kernels.confidence.operator import exit_confidence as operator
    from lit_eff.kernels.linear.operator import flat_norm

    arguments = draw(LinearCase(2, 30, 40, norm="rms"))
    hidden, weight, norm = (arguments[name] for name in ("hidden_NC", "weight_VC", "norm"))
    torch.library.opcheck(
        operator, (hidden, weight, None, *flat_norm(norm), None, 2.0, torch.rand(2), "entropy")
    )

    def call(hidden: Tensor) -> Tensor:
        return exit_confidence(hidden, weight, norm=norm).lse_N * 2

    assert torch.equal(torch.compile(call, fullgraph=True, backend="eager")(hidden), call(hidden))


def test_cpu_runs_the_reference_without_the_interpreter() -> None:
    arguments = draw(LinearCase())
    with mock.patch("lit_eff.kernels.linear.operator.INTERPRETED", False):
        got = exit_confidence(**arguments)
    assert same(got, exit_confidence_reference(**arguments))


X, W = torch.randn(3, 8), torch.randn(6, 8)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"hidden_NC": X[0]}, "exit_confidence wants rows"),
    ({"weight_VC": W.half()}, "expected torch.float32"),
    ({"bias": torch.zeros(5)}, "bias must be"),
    ({"norm": Norm(torch.zeros(7))}, "norm.weight_C must be"),
    ({"softcap": 0.0}, "softcap 0.0 must be positive"),
    ({"softcap": math.inf}, "softcap inf"),
    ({"measure": "entropie"}, "did you mean 'entropy'"),
    ({"thresholds": 1.5}, "threshold 1.5 is outside"),
    ({"thresholds": math.nan}, "threshold nan is outside"),
    ({"thresholds": torch.zeros(2)}, r"thresholds must be float32 \(3,\)"),
    ({"thresholds": torch.zeros(3).double()}, "thresholds must be float32"),
    ({"thresholds": torch.zeros(3, device="meta")}, "thresholds are on meta"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        exit_confidence(**({"hidden_NC": X, "weight_VC": W} | changes))
