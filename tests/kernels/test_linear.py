"""The skinny linear in the interpreter: values against float64, row invariance, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_eff.errors import UserError
from lit_eff.kernels.linear import Norm, skinny_linear, skinny_linear_reference
from lit_eff.kernels.linear import call as linear_call
from lit_eff.kernels.linear.plan import Plan
from tests.kernels.linear_cases import EVERYTHING, LinearCase, cases, exact

SIZES = [
    LinearCase(1, 576, 64),
    LinearCase(16, 64, 16),
    LinearCase(17, 65, 1, bias=True),
    LinearCase(3, 1, 5),
    LinearCase(40, 33, 47, norm="rms"),
    LinearCase(2, 700, 20, norm="layer"),
]


@pytest.mark.usefixtures("interpreter", "poisoned", "planned")
@pytest.mark.parametrize("case", [*cases(5), *SIZES], ids=str)
def test_float32_matches_float64(case: LinearCase) -> None:
    arguments = case.draw(torch.float32)
    torch.testing.assert_close(skinny_linear(**arguments).double(), exact(arguments), rtol=2e-5, atol=2e-5)


@pytest.mark.usefixtures("interpreter", "poisoned")
@pytest.mark.parametrize("case", [LinearCase(), replace(EVERYTHING, groups=0)], ids=str)
def test_float16_is_as_good_as_torch(case: LinearCase) -> None:
    arguments = case.draw(torch.float16)
    plain = skinny_linear_reference(**arguments, accumulate=torch.float16)
    true = exact(arguments)
    error = (skinny_linear(**arguments) - true).abs().max()
    assert error <= 2 * (plain - true).abs().max() + 1e-3
    assert skinny_linear(**arguments, out_dtype=torch.float32).dtype == torch.float32


@pytest.mark.usefixtures("interpreter")
def test_no_rows() -> None:
    assert skinny_linear(torch.randn(0, 8), torch.randn(4, 8)).shape == (0, 4)


@pytest.mark.usefixtures("row_exact_interpreter", "planned")
@pytest.mark.parametrize("case", [LinearCase(), LinearCase(norm="layer"), EVERYTHING], ids=str)
def test_rows_do_not_depend_on_their_neighbours(case: LinearCase) -> None:
    """Any number of rows, in any place, in one row tile or several, beside other neighbours."""
    arguments = replace(case, rows=70).draw(torch.float32)
    whole = skinny_linear(**arguments)

    def piece(first: int, count: int, **changes: Any) -> None:
        rows = slice(first, first + count)
        cut = dict(arguments, x_NC=arguments["x_NC"][rows]) | changes
        if case.residual:
            cut["residual"] = arguments["residual"][rows]
        assert torch.equal(skinny_linear(**cut), whole[rows])

    for first, count in ((0, 1), (7, 1), (69, 1), (3, 16), (20, 17), (5, 40)):
        piece(first, count)
    noisy = dict(arguments, x_NC=arguments["x_NC"].clone())
    noisy["x_NC"][::2] *= 1e3
    assert torch.equal(skinny_linear(**noisy)[1::2], whole[1::2])


@pytest.mark.usefixtures("row_exact_interpreter")
def test_plan_changes_no_bit_but_for_its_lanes() -> None:
    arguments = LinearCase(20, 300, 50, norm="rms").draw(torch.float32)
    plans = [Plan(64, 1, 32, 4, 3), Plan(16, 1, 64, 1, 2), Plan(32, 1, 256, 2, 2)]
    found = []
    for plan in plans:
        with mock.patch.object(linear_call, "plan_of", return_value=plan):
            found.append(skinny_linear(**arguments))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.usefixtures("row_exact_interpreter")
def test_strides_change_no_bit() -> None:
    arguments = EVERYTHING.draw(torch.float32)
    expected = skinny_linear(**arguments)
    for name in ("x_NC", "weight_OC", "residual", "scales"):
        arguments[name] = arguments[name].T.contiguous().T
    arguments["bias"] = torch.stack([arguments["bias"]] * 2, dim=1)[:, 0]
    assert torch.equal(skinny_linear(**arguments), expected)


@pytest.mark.usefixtures("interpreter")
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 35),
    channels=st.integers(1, 150),
    half=st.integers(1, 40),
    bias=st.booleans(),
    residual=st.booleans(),
    activation=st.sampled_from([None, "gelu", "gelu_tanh", "silu", "swiglu"]),
    norm=st.sampled_from([None, "rms", "rms_plain", "layer"]),
)
def test_any_sizes_and_features(
    rows: int, channels: int, half: int, bias: bool, residual: bool, activation: str | None, norm: str | None
) -> None:
    arguments = LinearCase(rows, channels, 2 * half, bias, residual, activation, norm).draw(torch.float32)
    torch.testing.assert_close(skinny_linear(**arguments).double(), exact(arguments), rtol=5e-5, atol=5e-5)


@pytest.mark.usefixtures("interpreter")
def test_operator_check_and_tracing() -> None:
    from lit_eff.kernels.linear.operator import flat_norm
    from lit_eff.kernels.linear.operator import skinny_linear as operator

    arguments = replace(EVERYTHING, rows=2, groups=0).draw(torch.float32)
    x, weight, bias, residual = (arguments[name] for name in ("x_NC", "weight_OC", "bias", "residual"))
    torch.library.opcheck(
        operator,
        (x, weight, None, *flat_norm(arguments["norm"]), bias, residual, "swiglu", torch.float32),
    )
    traced = torch.compile(lambda x: skinny_linear(x, weight, bias=bias) * 2, fullgraph=True, backend="eager")
    assert torch.equal(traced(x), skinny_linear(x, weight, bias=bias) * 2)


def test_cpu_runs_the_reference_without_the_interpreter() -> None:
    arguments = EVERYTHING.draw(torch.float32)
    with mock.patch("lit_eff.kernels.linear.operator.INTERPRETED", False):
        got = skinny_linear(**arguments)
    assert torch.equal(got, skinny_linear_reference(**arguments))


@pytest.mark.usefixtures("interpreter")
def test_bfloat16_is_refused_in_the_interpreter() -> None:
    """Its products are wrong there, by orders of magnitude."""
    arguments = LinearCase().draw(torch.bfloat16)
    with pytest.raises(UserError, match="interpreter computes bfloat16 products wrongly; use float32"):
        skinny_linear(**arguments)


def test_reference_is_torch() -> None:
    arguments = LinearCase(bias=True, norm="layer", activation="gelu_tanh").draw(torch.float64)
    norm = arguments["norm"]
    x = torch.nn.functional.layer_norm(arguments["x_NC"], (100,), norm.weight_C, norm.bias_C, norm.eps)
    y = torch.nn.functional.linear(x, arguments["weight_OC"], arguments["bias"])
    torch.testing.assert_close(exact(arguments), torch.nn.functional.gelu(y, approximate="tanh"))
    arguments = LinearCase(norm="rms").draw(torch.float64)
    x = torch.nn.functional.rms_norm(arguments["x_NC"], (100,), arguments["norm"].weight_C, 1e-5)
    torch.testing.assert_close(exact(arguments), x @ arguments["weight_OC"].T)


X, W = torch.randn(3, 128), torch.randn(6, 128)
W8 = torch.zeros(6, 128, dtype=torch.int8)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"x_NC": X[0]}, "wants rows"),
    ({"x_NC": X[:, :7]}, "wants rows"),
    ({"weight_OC": W[:0]}, "is empty"),
    ({"x_NC": X.double(), "weight_OC": W.double()}, "float64 is not"),
    ({"weight_OC": W.half()}, "expected torch.float32"),
    ({"weight_OC": W8}, "needs scales"),
    ({"activation": "relu"}, "unknown activation 'relu'"),
    ({"activation": "swiglu", "weight_OC": W[:5]}, "5 is odd"),
    ({"bias": torch.zeros(5)}, r"bias must be floating point \(6,\)"),
    ({"residual": torch.zeros(3, 5)}, "residual must be"),
    ({"residual": torch.zeros(3, 6), "activation": "swiglu"}, r"\(3, 3\)"),
    ({"norm": Norm(torch.zeros(7))}, "norm.weight_C must be"),
    ({"norm": Norm(None, torch.zeros(7))}, "norm.bias_C must be"),
    ({"norm": Norm(eps=-1.0)}, "norm.eps -1.0"),
    ({"out_dtype": torch.float64}, "out_dtype"),
    ({"scales": torch.ones(6)}, "expected torch.int8"),
    ({"weight_OC": W8, "scales": torch.ones(5)}, "scales must be float32"),
    ({"weight_OC": W8, "scales": torch.ones(6, 4)}, "multiple of 64"),
    ({"weight_OC": W8, "scales": torch.ones(6).half()}, "scales must be float32"),
    ({"bias": torch.zeros(6, device="meta")}, "bias is on meta"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        skinny_linear(**({"x_NC": X, "weight_OC": W} | changes))
