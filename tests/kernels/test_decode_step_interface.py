"""The public class of the decode step: what it refuses, and the reference where no kernel runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch

from lit_eff.errors import UserError
from lit_eff.kernels.decode_step import DecodeStep, default_plan, interface
from tests.kernels.step_cases import SMALL, StepCase

ROWS = ([3, 0, 49], [16, 60, 61], [1, 2, 2])


def step_of(case: StepCase, rows: int = 3, **more: Any) -> DecodeStep:
    given = {"weights": case.weights, "k_LBSKD": case.k_LBSKD.clone(), "v_LBSKD": case.v_LBSKD.clone()}
    return DecodeStep(case.shape, output_VC=case.weights.embedding, rows=rows, **(given | more))


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("advance", [0, 1])
def test_kernel_and_reference_agree(advance: int) -> None:
    """Two steps, the second on the tokens of the first."""
    case = StepCase()
    bias = torch.randn(case.shape.vocabulary, generator=torch.Generator().manual_seed(1))
    kernel = step_of(case, advance=advance, bias=bias, softcap=5.0)
    with mock.patch.object(interface, "runs_products", return_value=False):
        plain = step_of(case, advance=advance, bias=bias, softcap=5.0)
    assert kernel.launches
    assert not plain.launches
    for step in (kernel, plain):
        step.place(*ROWS)
        step.run()
        step.run()
    assert kernel.row.position.tolist() == [position + 2 * advance for position in ROWS[1]]
    for name in ("token", "position", "sequence", "history"):
        assert torch.equal(getattr(kernel.row, name), getattr(plain.row, name)), name
    torch.testing.assert_close(kernel.hidden_NC, plain.hidden_NC, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kernel.k_LBSKD, plain.k_LBSKD, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kernel.v_LBSKD, plain.v_LBSKD, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(kernel.found, plain.found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert kernel.found.token_N is kernel.row.token


def test_wrong_tensors() -> None:
    case = StepCase()
    weights = case.weights
    wide = torch.empty(2, 3, 70, 2, 17)[..., :16]
    for more, message in (
        ({"rows": 0}, "0 rows; expected at least 1"),
        ({"weights": weights._replace(qkv=weights.qkv[:1])}, r"qkv must be floating point \(2, 128, 96\)"),
        (
            {"weights": weights._replace(down=weights.down.half())},
            "down is torch.float16; expected",
        ),
        ({"weights": weights._replace(gains=weights.gains.T.contiguous().T)}, "that is not contiguous"),
        ({"weights": weights._replace(sines=weights.sines[:9])}, r"sines must be floating point \(70, 8\)"),
        ({"k_LBSKD": case.k_LBSKD[0]}, r"keys are \(3, 70, 2, 16\); expected \(L, B, S, K, D\)"),
        ({"v_LBSKD": case.v_LBSKD[:, :2]}, r"values must be floating point \(2, 3, 70, 2, 16\)"),
        ({"v_LBSKD": wide}, "keys and values must have one layout"),
        ({"k_LBSKD": wide, "v_LBSKD": wide}, "the slots of a sequence side by side"),
        ({"v_LBSKD": case.v_LBSKD.half()}, "values are torch.float16; expected the weights' torch.float32"),
        ({"bias": torch.zeros(9)}, r"bias must be floating point \(50,\)"),
        ({"softcap": 0.0}, "softcap 0.0 must be positive"),
    ):
        with pytest.raises(UserError, match=message):
            step_of(case, **more)
    with pytest.raises(UserError, match="MLP inner width 100 is not a multiple of 16"):
        step_of(StepCase(replace(SMALL, inner=100)))
    plan = replace(default_plan(case.shape, torch.device("cpu")), form="persistent")
    with pytest.raises(UserError, match="the persistent form needs a GPU, not cpu"):
        step_of(case, plan=plan)


@pytest.mark.parametrize(
    ("index", "values", "message"),
    [
        (0, [3, 0], "2 tokens for 3 rows"),
        (0, [3, 0, 50], "tokens hold 50; expected 0 to 49"),
        (1, [0, -1, 2], "positions hold -1; expected 0 to 69"),
        (1, [0, 70, 2], "positions hold 70"),
        (2, [0, 0, 3], "sequences hold 3; expected 0 to 2"),
    ],
)
def test_wrong_rows(index: int, values: list[int], message: str) -> None:
    rows = [*ROWS]
    rows[index] = values
    with pytest.raises(UserError, match=message):
        step_of(StepCase()).place(*rows)


@pytest.mark.usefixtures("interpreter")
def test_bfloat16_in_the_interpreter() -> None:
    with pytest.raises(UserError, match="decode_step cannot run: Triton's interpreter computes bfloat16"):
        step_of(StepCase(dtype=torch.bfloat16))
