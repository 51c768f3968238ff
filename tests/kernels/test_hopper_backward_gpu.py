"""The Hopper gradient kernels on a Hopper GPU: precision against torch's own, poisoned outputs, bits."""

from __future__ import annotations

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

SIZES = [
    (2, 256, 256, 4, 4),
    (2, 300, 300, 4, 2),  # ragged tiles
    (1, 1, 1, 1, 1),
    (1, 65, 1, 2, 2),
    (3, 128, 1024, 4, 1),
    (1, 200, 1000, 2, 2),
    (1, 1000, 200, 2, 2),  # causal: the first 800 queries see nothing
    (3, 130, 2050, 33, 11),
    (2, 1024, 1024, 40, 8),  # more programs than multiprocessors, and sums scaled in the background
    (8, 1024, 1024, 16, 16),
    (8, 1000, 200, 40, 40),  # causal: queries that see nothing among the sums scaled in the background
    (5, 70, 1000, 40, 40),  # short items, many a program
    (1, 4096, 4096, 4, 4),
    (1, 9000, 500, 2, 2),
    (1, 500, 9000, 2, 2),  # rounds of whole heads would leave half the multiprocessors idle
    (2, 200, 16000, 1, 1),  # a round is one head
]
CASES = [
    Case(*sizes, head_dim, {"causal": causal})
    for sizes in SIZES
    for head_dim in (64, 128)
    for causal in (False, True)
]


def gradients(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, causal: bool
) -> list[Tensor]:
    """dQ, dK and dV, from memory full of NaN."""
    from lit_eff.kernels.attention.call import AttentionCall
    from lit_eff.kernels.attention.hopper import supported
    from lit_eff.kernels.attention.hopper.backward import backward_launches

    call = AttentionCall(q, k, v, None, None, None, q.shape[-1] ** -0.5, causal, None, None)
    assert supported(call) is None
    filled = [torch.full(tensor.shape, float("nan"), dtype=q.dtype, device=q.device) for tensor in (q, k, v)]
    for launch in backward_launches(call, out, lse, dout, dlse, torch.empty_like(lse), *filled):
        if 0 not in launch.grid:
            launch.run()
    return filled


def reference(case: Case, dtype: torch.dtype, accumulate: torch.dtype, with_dlse: bool) -> dict[str, Any]:
    tensors = [tensor.to(accumulate).requires_grad_() for tensor in case.tensors(dtype, "cuda")]
    out, lse = attention_reference(*tensors, **case.options, accumulate=accumulate, return_lse=True)
    generator = torch.Generator("cuda").manual_seed(0)
    dout = torch.randn(out.shape, device="cuda", generator=generator).to(dtype)
    dlse = torch.randn(lse.shape, device="cuda", generator=generator) if with_dlse else None
    dlse = None if dlse is None else dlse.where(lse.isfinite(), 0.0)
    outputs, grads = (
        ((out, lse), (dout.to(accumulate), dlse)) if with_dlse else ((out,), (dout.to(accumulate),))
    )
    return {"out": out.detach(), "lse": lse.detach(), "dout": dout, "dlse": dlse} | {
        "gradients": torch.autograd.grad(outputs, tensors, grads)
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_is_at_most_twice_torchs(case: Case, dtype: torch.dtype) -> None:
    with_dlse = case.queries % 2 == 1 or case.queries == 300
    exact = reference(case, dtype, torch.float32, with_dlse)
    plain = reference(case, dtype, dtype, with_dlse)["gradients"]
    arguments = (exact["dout"], exact["dlse"], exact["out"].to(dtype), exact["lse"], case.options["causal"])
    first, second = (gradients(*case.tensors(dtype, "cuda"), *arguments) for _ in range(2))
    for name, ours, again, torchs, right in zip("qkv", first, second, plain, exact["gradients"], strict=True):
        assert torch.equal(ours, again), f"d{name}: other bits the second time"
        error, allowed = (ours - right).abs().max(), 2 * (torchs - right).abs().max() + 1e-3
        assert error <= allowed, f"d{name}: {error} > {allowed}"


@pytest.mark.parametrize("head_dim", [64, 128])
def test_views_and_an_expanded_gradient(head_dim: int) -> None:
    fused = torch.randn(2, 300, 4 + 2 + 2, head_dim, device="cuda", dtype=torch.bfloat16)
    views = fused.split([4, 2, 2], dim=2)
    copies = [view.contiguous() for view in views]
    out, lse = attention_reference(*copies, causal=True, return_lse=True)
    dout = torch.ones(1, 1, 1, 1, device="cuda", dtype=torch.bfloat16).expand(out.shape)
    swapped = [copy.transpose(1, 2).contiguous().transpose(1, 2) for copy in copies]  # heads before rows
    expected = gradients(*copies, dout.contiguous(), None, out, lse, True)
    for tensors in (views, swapped):
        for ours, right in zip(gradients(*tensors, dout, None, out, lse, True), expected, strict=True):
            assert torch.equal(ours, right)
