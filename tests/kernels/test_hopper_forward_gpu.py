"""The Hopper forward kernel on a Hopper GPU: precision against torch's own, poisoned outputs, bits, views."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_eff.kernels.attention import attention_reference
from tests.kernels.cases import Case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9,
        reason="needs a Hopper GPU",
    ),
]

PLAIN = [
    (2, 256, 256, 4, 4),
    (2, 300, 300, 4, 2),  # ragged tiles
    (1, 1, 1, 1, 1),
    (3, 128, 1024, 4, 1),
    (1, 200, 1000, 2, 2),
    (1, 1000, 200, 2, 2),  # causal: the first 800 queries see nothing
    (3, 130, 2050, 33, 11),
    (2, 1024, 1024, 40, 8),  # more tiles than multiprocessors: programs take several
    (1, 4096, 4096, 16, 16),
]
FEATURES = [
    Case(2, 500, 700, 4, 2, 64, {"window": 1}),
    Case(2, 500, 700, 4, 2, 64, {"causal": True, "window": 100}),
    Case(2, 500, 700, 4, 2, 128, {"window": 300}),
    Case(1, 1000, 300, 2, 2, 128, {"causal": True, "window": 200, "sinks": 3.0}),
    Case(2, 300, 300, 4, 2, 64, {"sinks": 3.0}),
    Case(2, 300, 400, 4, 2, 128, {"causal": True, "softcap": 5.0}),
    Case(3, 100, 900, 4, 2, 64, {"causal": True}, starts=(0, 300, 800)),
    Case(
        3,
        100,
        900,
        4,
        2,
        128,
        {"causal": True, "window": 130, "softcap": 8.0, "sinks": 3.0},
        starts=(0, 300, 800),
    ),
]
KINDS = [(head_dim, {"causal": causal}) for head_dim in (64, 128) for causal in (False, True)]
CASES = FEATURES + [Case(*sizes, *kind) for sizes in PLAIN for kind in KINDS]


def forward(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, from memory full of NaN."""
    from lit_eff.kernels.attention.call import AttentionCall
    from lit_eff.kernels.attention.hopper import forward_supported
    from lit_eff.kernels.attention.hopper.forward import forward_launch

    scale = options.get("scale", q.shape[-1] ** -0.5)
    starts, window, softcap = (options.get(name) for name in ("starts_B", "window", "softcap"))
    causal = options.get("causal", False) or starts is not None
    call = AttentionCall(q, k, v, None, None, starts, scale, causal, window, softcap)
    call = dataclasses.replace(call, sinks_H=options.get("sinks"))
    assert forward_supported(call) is None
    out = torch.full(q.shape, float("nan"), dtype=q.dtype, device=q.device)
    lse = torch.full((q.shape[0], q.shape[2], q.shape[1]), float("nan"), device=q.device)
    forward_launch(call, out, lse).run()
    return out, lse


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_is_at_most_twice_torchs(case: Case, dtype: torch.dtype) -> None:
    tensors, options = case.tensors(dtype, "cuda"), case.arguments("cuda")
    out, lse = forward(*tensors, **options)
    plain = attention_reference(*tensors, **options, accumulate=dtype)
    wide = (tensor.float() for tensor in tensors)
    exact, exact_lse = attention_reference(*wide, **options, accumulate=torch.float32, return_lse=True)
    assert isinstance(plain, Tensor)
    assert out.isfinite().all()
    assert (out - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-3
    torch.testing.assert_close(lse, exact_lse, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_runs_give_equal_bits(head_dim: int) -> None:
    case = Case(2, 1500, 1500, 24, 8, head_dim, {"causal": True})
    tensors = case.tensors(torch.bfloat16, "cuda")
    first, second = (forward(*tensors, causal=True) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_views_of_a_fused_projection() -> None:
    fused = torch.randn(2, 300, 4 + 2 + 2, 64, device="cuda", dtype=torch.bfloat16)
    views = fused.split([4, 2, 2], dim=2)
    copies = [view.contiguous() for view in views]
    assert torch.equal(forward(*views, causal=True)[0], forward(*copies, causal=True)[0])
    swapped = [copy.transpose(1, 2).contiguous().transpose(1, 2) for copy in copies]  # heads before rows
    assert torch.equal(forward(*swapped)[0], forward(*copies)[0])
