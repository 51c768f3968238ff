"""Compiling for GPUs that are not here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton

from lit_eff.errors import UserError
from lit_eff.profiling.compiled import compile_launch
from lit_eff.profiling.launch import Launch
from tests.profiling import toy_kernels

PROGRAM = """
import torch
from lit_eff.profiling.compiled import compile_launch
from lit_eff.profiling.launch import Launch
from tests.profiling import toy_kernels
x = torch.empty(4096, dtype=torch.float16, device="meta")
out = torch.empty(4096, device="meta")
adds = Launch(toy_kernels.add_kernel, (4,), dict(p_x=x, p_y=x, p_sum=x, count=100, BLOCK=64))
multiplies = Launch(toy_kernels.shared_memory_kernel, (1,), dict(p_x=x, p_y=x, p_out=out, BLOCK=64))
for capability in (80, 90):
    add, dot = compile_launch(adds, capability), compile_launch(multiplies, capability)
    assert (add.shared_memory_bytes, add.spill_store_bytes, add.capability) == (0, 0, capability), add
    assert 8 <= add.registers_per_thread <= 64, add
    assert 64 * 64 * 2 <= dot.shared_memory_bytes <= 64 * 1024, dot
    assert dot.kernel == "shared_memory_kernel"
print("fine")
"""


def test_resources_of_toy_kernels(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "fine", done.stderr


@pytest.mark.skipif(
    isinstance(toy_kernels.add_kernel, triton.JITFunction), reason="the kernels are compiled here"
)
def test_interpreted_kernels_cannot_be_compiled() -> None:
    x = torch.empty(8, device="meta")
    launch = Launch(toy_kernels.add_kernel, (1,), {"p_x": x, "p_y": x, "p_sum": x, "count": 8, "BLOCK": 8})
    with pytest.raises(UserError, match="unset it to compile"):
        compile_launch(launch, 90)
