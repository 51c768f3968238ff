"""What the public function refuses, and how it says so."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from lit_eff.errors import UserError
from lit_eff.kernels.attention import attention, explain, paths, supports, use_path
from lit_eff.kernels.attention.call import AttentionCall

Q = torch.zeros(2, 5, 4, 16)
K = torch.zeros(2, 7, 2, 16)
IDS = torch.zeros(2, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("q", "k", "options", "message"),
    [
        (Q[0], K, {}, "wants q \\(B, T, H, D\\)"),
        (Q, K[:1], {}, "differ in batch"),
        (Q[:, :, :3], K, {}, "3 query heads are not a multiple of 2"),
        (Q[..., :8], K[..., :8], {}, "head dim 8 is outside 16 to 256"),
        (Q, K.double(), {}, "one dtype"),
        (Q.double(), K.double(), {}, "dtype torch.float64 is not"),
        (Q, K, {"causal": True, "window": 0}, "window 0"),
        (Q, K, {"softcap": 0.0}, "softcap 0.0"),
        (Q, K, {"key_documents_BS": torch.zeros(2, 7, dtype=torch.int64)}, "needs documents_BT"),
        (
            Q,
            K,
            {"documents_BT": torch.zeros(2, 5, dtype=torch.int64)},
            "key_documents_BS must have shape \\(2, 7\\)",
        ),
        (Q, K, {"starts_B": torch.zeros(2)}, "starts_B must hold integers"),
        (Q, K, {"sinks": torch.zeros(2)}, "sinks must be floating point, \\(4,\\), one a query head"),
        (Q, K, {"alibi": torch.zeros(4, dtype=torch.int64)}, "alibi must be floating point"),
        (Q, K, {"dropout_p": 1.0}, "dropout_p 1.0 must be at least 0 and below 1"),
        (Q, K, {"dropout_p": 0.1, "seed": 2**63}, "does not fit 64 signed bits"),
        (Q, K, {"seed": torch.zeros(2, dtype=torch.int64)}, "seed must be an int, or one int64"),
        (Q, K, {"seed": torch.zeros(1)}, "seed must be an int, or one int64"),
        (Q.to("meta"), K, {}, "one device; got q meta, k cpu"),
        (Q, K, {"sinks": torch.zeros(4, device="meta")}, "sinks is on meta, q on cpu"),
    ],
)
def test_bad_arguments_are_named(
    q: torch.Tensor, k: torch.Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        attention(q, k, k, **options)


@pytest.mark.usefixtures("interpreter")
def test_interpreter_refuses_bfloat16() -> None:
    """Its bfloat16 products are wrong without a word (Triton 3.6 to 3.9)."""
    assert supports("cpu", head_dim=64)
    with pytest.raises(UserError, match="interpreter computes bfloat16"):
        attention(Q.bfloat16(), K.bfloat16(), K.bfloat16())


CPU_PROGRAM = """
import torch
from lit_eff.kernels.attention import attention, attention_reference, attention_varlen, explain, supports
from lit_eff.kernels.attention import attention_varlen_reference

assert not supports("cpu", head_dim=16)
q, k, v = torch.randn(2, 30, 4, 16), torch.randn(2, 50, 2, 16), torch.randn(2, 50, 2, 16)
ids, sinks = torch.arange(30).expand(2, -1) // 9, torch.rand(4)
cases = [
    ("sdpa", {}),
    ("sdpa", {"causal": True}),
    ("sdpa", {"causal": True, "window": 7}),
    ("sdpa", {"starts_B": torch.tensor([0, 9])}),
    ("sdpa", {"alibi": sinks, "window": 9}),
    ("sdpa", {"documents_BT": ids, "key_documents_BS": torch.arange(50).expand(2, -1) // 9 + 1}),
    ("reference", {"sinks": sinks}),
    ("reference", {"softcap": 2.0}),
    ("reference", {"dropout_p": 0.2, "seed": 4}),
]
for name, options in cases:
    path = explain(q, k, v, **options)
    assert path.name == name, (path, options)
    assert "no CUDA device" in path.reason
    expected = attention_reference(q, k, v, **options)
    torch.testing.assert_close(attention(q, k, v, **options), expected, msg=lambda m: f"{options} {m}")
square = [torch.randn(2, 30, 4, 16) for _ in range(3)]
torch.testing.assert_close(attention(*square, causal=True), attention_reference(*square, causal=True))
assert explain(q, k, v, return_lse=True).name == "reference"
leaves = [torch.randn(1, 5, 1, 16).requires_grad_(), torch.randn(1, 2, 1, 16).requires_grad_()]
attention(leaves[0], leaves[1], leaves[1], causal=True).sum().backward()  # three queries see no key
assert all(leaf.grad.isfinite().all() for leaf in leaves)
cu = torch.tensor([0, 3, 3, 50])
packed = torch.randn(50, 4, 16), torch.randn(50, 2, 16), torch.randn(50, 2, 16), cu, cu
for name, options in [("sdpa", {"causal": True}), ("reference", {"dropout_p": 0.2, "seed": 4})]:
    assert explain(*packed, **options).name == name
    expected = attention_varlen_reference(*packed, **options)
    torch.testing.assert_close(attention_varlen(*packed, **options), expected)
"""


def test_a_cpu_call_takes_torchs_attention_and_says_so() -> None:
    """In a process without the interpreter: the fused form, or the reference for what that lacks."""
    subprocess.run(
        [sys.executable, "-c", CPU_PROGRAM], env={**os.environ, "TRITON_INTERPRET": "0"}, check=True
    )


@pytest.mark.usefixtures("interpreter")
def test_explain_names_the_interpreter() -> None:
    assert explain(Q, K, K, causal=True).name == "interpreter"
    state = torch.get_rng_state()
    assert explain(Q, K, K, dropout_p=0.5).name == "interpreter"
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn
    cu = torch.tensor([0, 5])
    assert explain(Q[0], K[0, :5], K[0, :5], cu, cu).name == "interpreter"


def test_unknown_path_is_named() -> None:
    with (
        pytest.raises(UserError, match=r"unknown attention path 'hoper'.*did you mean"),
        use_path("hoper"),
    ):
        pass


def meta_call(capability: int, **options: Any) -> AttentionCall:
    with torch.device("meta"):
        q = torch.empty(1, 8, 1, 64, dtype=torch.bfloat16)
    return AttentionCall(q, q, q, None, None, None, 1.0, True, None, None, target=capability, **options)


def test_path_of_a_gpu_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the Hopper kernels where they are and can; forced or not; never silently another."""
    monkeypatch.setattr(AttentionCall, "is_cuda", True)
    assert paths.path_of(meta_call(80)).name == "portable"
    assert "sm_80, not sm_90" in paths.path_of(meta_call(80)).reason
    monkeypatch.setattr(paths, "_hopper_obstacle", lambda call, backward: None)
    assert paths.path_of(meta_call(90)).name == "hopper"
    assert paths.path_of(meta_call(90), backward=True).name == "hopper"
    with use_path("portable"):
        assert str(paths.path_of(meta_call(90))) == "portable (forced)"
    monkeypatch.setenv(paths.FORCED, "portable")
    assert str(paths.path_of(meta_call(90))) == "portable (forced)"
    monkeypatch.setattr(paths, "_hopper_obstacle", lambda call, backward: "a lack")
    assert paths.path_of(meta_call(90)).reason == "forced"
    with use_path("hopper"), pytest.raises(UserError, match="forced but cannot run here: a lack"):
        paths.path_of(meta_call(90))
    monkeypatch.delenv(paths.FORCED)
    assert paths.path_of(meta_call(90)).reason == "not hopper: a lack"


def test_strides_too_long_for_the_kernels_are_copied() -> None:
    """Offsets within a tile are 32-bit: rows 2**25 elements apart do not fit, 2**23 do."""
    from lit_eff.kernels.attention.call import addressable

    near, far = (
        torch.empty_strided((1, 4, 2, 16), (2**30, row, 16, 1), device="meta") for row in (2**23, 2**25)
    )
    assert addressable(near) is near
    assert addressable(far).is_contiguous()
