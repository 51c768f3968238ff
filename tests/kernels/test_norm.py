"""Norms in the interpreter: values and gradients against float64, row invariance, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_eff.errors import UserError
from lit_eff.kernels.catalogue import get_operation
from lit_eff.kernels.norm import call as norm_call
from lit_eff.kernels.norm import layer_norm, rms_norm, specimens
from tests.kernels.norm_cases import CASES, F16, F32, NormCase
from tests.kernels.test_catalogue import assert_counted_as_modelled


@pytest.fixture(params=[2, 512], ids=lambda most: f"{most} programs")
def programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """With two, programs of the backward take several tiles each."""
    with mock.patch.object(norm_call, "MAX_PROGRAMS", request.param):
        yield


@pytest.mark.usefixtures("interpreter", "poisoned", "programs")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_matches_float64(case: NormCase) -> None:
    tensors = case.draw(F32)
    exact = case.exact(tensors)
    for name, got in case.ours(tensors).items():
        torch.testing.assert_close(got.double(), exact[name], rtol=2e-5, atol=2e-5, msg=name)


@pytest.mark.usefixtures("interpreter", "poisoned")
@pytest.mark.parametrize("centered", [False, True], ids=["rms", "layer"])
@pytest.mark.parametrize("residual", [None, F16, F32], ids=str)
def test_float16_is_as_good_as_torch(centered: bool, residual: torch.dtype | None) -> None:
    """Also a stream in float32 beside what a layer adds in half precision, normalised to half precision.

    (bfloat16 on a GPU: the interpreter cuts it off rather than round.)
    """
    out_dtype = F16 if residual == F32 else None
    case = NormCase(40, 96, centered, shift=centered, residual=residual, out_dtype=out_dtype)
    tensors = case.draw(F16)
    ours, plain, exact = case.ours(tensors), case.plain(tensors), case.exact(tensors)
    for name, got in ours.items():
        assert got.dtype == plain[name].dtype
        error, yardstick = ((each[name] - exact[name]).abs().max() for each in (ours, plain))
        assert error <= 2 * yardstick + 1e-6, name


@pytest.mark.parametrize("dtype", [F16, torch.bfloat16], ids=str)
def test_semantics_are_torchs(dtype: torch.dtype) -> None:
    """Rounded once, after the gain."""
    x, weight = (torch.randn(*shape).to(dtype) for shape in ((50, 64), (64,)))
    with mock.patch("lit_eff.kernels.linear.operator.INTERPRETED", False):
        assert torch.equal(rms_norm(x, weight, 1e-6), F.rms_norm(x, (64,), weight, 1e-6))
        expected = F.layer_norm(x, (64,), weight, weight, 1e-6)
        torch.testing.assert_close(layer_norm(x, weight, weight, 1e-6), expected)


@pytest.mark.usefixtures("interpreter")
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 40),
    channels=st.integers(1, 300),
    centered=st.booleans(),
    gain=st.booleans(),
    shift=st.booleans(),
    residual=st.booleans(),
)
def test_any_sizes(rows: int, channels: int, centered: bool, gain: bool, shift: bool, residual: bool) -> None:
    case = NormCase(rows, channels, centered, gain, centered and shift, F32 if residual else None)
    tensors = case.draw(F32)
    exact = case.exact(tensors)
    for name, got in case.ours(tensors).items():
        # A row of equal channels has no variance: what 1 / sqrt(eps) magnifies is rounding.
        torch.testing.assert_close(got.double(), exact[name], rtol=1e-4, atol=1e-4 if channels > 1 else 1e-2)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("case", [NormCase(37, 65), NormCase(37, 65, True, True, True, F32)], ids=str)
def test_rows_do_not_depend_on_their_neighbours(case: NormCase) -> None:
    tensors = case.draw(F32)
    whole = case.run(tensors)
    for first, count in ((0, 1), (7, 1), (36, 1), (3, 16), (5, 30)):
        rows = slice(first, first + count)
        cut = {
            name: None if each is None else each[rows] if each.ndim == 2 else each
            for name, each in tensors.items()
        }
        for got, expected in zip(case.run(cut), whole, strict=True):
            assert torch.equal(got, expected[rows])


@pytest.mark.usefixtures("interpreter")
def test_strides_and_leading_dimensions() -> None:
    x, weight = torch.randn(2, 3, 40), torch.randn(40)
    expected = rms_norm(x, weight, 1e-5)
    assert expected.shape == x.shape
    wide = torch.randn(2, 3, 48)
    wide[..., 3:43] = x
    assert torch.equal(rms_norm(wide[..., 3:43], weight, 1e-5), expected)
    assert torch.equal(rms_norm(x.permute(2, 0, 1).contiguous().permute(1, 2, 0), weight, 1e-5), expected)
    assert torch.equal(rms_norm(x, torch.stack([weight, weight], 1)[:, 1], 1e-5), expected)
    assert torch.equal(rms_norm(x[0, 0], weight, 1e-5), expected[0, 0])


@pytest.mark.parametrize("channels", [48, 50])
def test_rows_that_would_be_compiled_otherwise_are_copied(channels: int) -> None:
    """Whatever comes, the kernel sees the alignments of a fresh tensor of this width."""
    fresh = torch.zeros(6, channels)
    assert norm_call.packed_rows(fresh) == (fresh, channels)
    base = torch.zeros(7, channels + 30)
    views = [fresh[1:2], base[:, 3 : channels + 3], base[:, :channels], base.T[:channels].T]
    for view in (*views, torch.zeros(channels, 6).T):
        rows, stride = norm_call.packed_rows(view)
        assert rows.data_ptr() % 16 == 0
        assert (stride % 16 == 0) == (channels % 16 == 0)
        assert rows.shape == view.shape


@pytest.mark.usefixtures("interpreter")
def test_only_what_needs_a_gradient_gets_one() -> None:
    x, weight, residual = torch.randn(4, 32, requires_grad=True), torch.randn(32), torch.randn(4, 32)
    out, total = rms_norm(x, weight, 1e-5, residual=residual)
    (alone,) = torch.autograd.grad(total.sum(), x, retain_graph=True)
    assert torch.equal(alone, torch.ones_like(x))
    (dx,) = torch.autograd.grad(out.sum(), x)
    plain = x.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.rms_norm(plain + residual, (32,), weight, 1e-5).sum(), plain)
    torch.testing.assert_close(dx, expected)


@pytest.mark.usefixtures("interpreter")
def test_operator_check_and_tracing() -> None:
    from lit_eff.kernels.norm.operator import norm_backward, norm_forward

    x, weight = torch.randn(3, 20, requires_grad=True), torch.randn(20, requires_grad=True)
    residual = torch.randn(3, 20, requires_grad=True)
    torch.library.opcheck(norm_forward, (x, residual, weight, weight, 1e-5, True, None))
    torch.library.opcheck(norm_forward, (x, None, weight, None, 1e-5, False, F16))
    with torch.no_grad():
        backward = (x, x, x, weight, 1e-5, True, F32, F16, True, True)
        torch.library.opcheck(norm_backward, backward, test_utils=["test_schema", "test_faketensor"])

    def both(x: torch.Tensor) -> torch.Tensor:
        out, total = rms_norm(x, weight, 1e-5, residual=residual)
        return out * total

    traced = torch.compile(both, fullgraph=True, backend="aot_eager")
    for function in (traced, both):
        found = torch.autograd.grad(function(x).sum(), (x, weight, residual))
        if function is traced:
            first = found
    assert all(torch.equal(a, b) for a, b in zip(first, found, strict=True))


@pytest.mark.usefixtures("interpreter")
def test_autocast_changes_no_dtype() -> None:
    x = torch.randn(2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert rms_norm(x, None, 1e-5).dtype == F32
        assert layer_norm(x, None, None, 1e-5, out_dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.usefixtures("interpreter", "programs")
def test_counts_are_as_modelled_however_many_tiles_a_program_takes() -> None:
    case = specimens.NormCase(33, 130, shift=True, residual="float32")
    assert_counted_as_modelled(get_operation("norm"), case)


def test_what_is_refused() -> None:
    x, weight = torch.randn(2, 16), torch.randn(16)
    refused: list[tuple[str, Any]] = [
        ("1 to 16384 channels", lambda: rms_norm(torch.randn(2, 16385), None, 1e-5)),
        ("1 to 16384 channels", lambda: rms_norm(torch.tensor(1.0), None, 1e-5)),
        ("float64", lambda: rms_norm(x.double(), None, 1e-5)),
        ("out_dtype torch.int8", lambda: rms_norm(x, None, 1e-5, out_dtype=torch.int8)),
        ("eps -1", lambda: rms_norm(x, None, -1.0)),
        ("eps nan", lambda: rms_norm(x, None, float("nan"))),
        (r"weight must be floating point \(16,\)", lambda: rms_norm(x, weight[1:], 1e-5)),
        (r"bias must be floating point \(16,\)", lambda: layer_norm(x, weight, weight.int(), 1e-5)),
        ("residual", lambda: rms_norm(x, weight, 1e-5, residual=x[:1])),
    ]
    for words, call in refused:
        with pytest.raises(UserError, match=words):
            call()


def test_cpu_runs_the_reference_without_the_interpreter() -> None:
    case = replace(CASES[5])
    tensors = case.draw(F32)
    with mock.patch("lit_eff.kernels.linear.operator.INTERPRETED", False):
        ours = case.ours(tensors)
    assert all(torch.equal(ours[name], each) for name, each in case.plain(tensors).items())
