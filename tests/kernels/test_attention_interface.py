"""What the public function refuses, and how it says so."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from lit_eff.errors import UserError
from lit_eff.kernels.attention import attention, supports

Q = torch.zeros(2, 5, 4, 16)
K = torch.zeros(2, 7, 2, 16)
IDS = torch.zeros(2, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("q", "k", "options", "message"),
    [
        (Q[0], K, {}, "wants q \\(B, T, H, D\\)"),
        (Q, K[:1], {}, "differ in batch"),
        (Q[:, :, :3], K, {}, "3 query heads are not a multiple of 2"),
        (Q[..., :8], K[..., :8], {}, "head dim 8 is outside 16 to 128"),
        (Q, K.double(), {}, "one dtype"),
        (Q, K[:, :0], {}, "no empty dimension"),
        (Q.double(), K.double(), {}, "float64 is not"),
        (Q, K, {"window": 3}, "needs causal"),
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


def test_cpu_without_the_interpreter_says_so() -> None:
    program = (
        "import torch\n"
        "from lit_eff.errors import UserError\n"
        "from lit_eff.kernels.attention import attention, supports\n"
        "q = torch.zeros(1, 2, 1, 16)\n"
        "assert not supports('cpu', head_dim=16)\n"
        "try: attention(q, q, q)\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "needs a CUDA device, not cpu" in done.stdout
    assert "TRITON_INTERPRET=1" in done.stdout


def test_strides_too_long_for_the_kernels_are_copied() -> None:
    """Offsets within a tile are 32-bit: rows 2**25 elements apart do not fit, 2**23 do."""
    from lit_eff.kernels.attention.call import addressable

    near, far = (
        torch.empty_strided((1, 4, 2, 16), (2**30, row, 16, 1), device="meta") for row in (2**23, 2**25)
    )
    assert addressable(near) is near
    assert addressable(far).is_contiguous()
