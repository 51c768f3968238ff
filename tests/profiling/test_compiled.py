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
from lit_eff.profiling.devices import get_device
from lit_eff.profiling.launch import Launch
from lit_eff.profiling.modelled import ModelledLaunch, Traffic
from lit_eff.profiling.occupancy import occupancy
from lit_eff.profiling.records import compiled_numbers
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
    assert (add.num_warps, dot.num_warps) == (4, 4)
ada = get_device("L4")
numbers = compiled_numbers(ModelledLaunch(adds, Traffic()), ada)
(programs,), (share,) = numbers["programs_per_sm"], numbers["occupancy"]
assert (programs.value, share.value, share.source) == (12, 1.0, "counted"), numbers
assert share.detail == "compiled for L4; limited by warps", share
# Two tiles of 256 x 256 elements take 256 KiB, more than any SM has.
wide = Launch(toy_kernels.shared_memory_kernel, (1,), dict(p_x=x, p_y=x, p_out=out, BLOCK=256), num_warps=8)
numbers = compiled_numbers(ModelledLaunch(wide, Traffic()), ada)
assert numbers["shared_memory_bytes"][0].value > ada.shared_memory_per_sm, numbers
for name in ("programs_per_sm", "occupancy"):
    (number,) = numbers[name]
    assert (number.value, number.source) == (None, "unavailable"), number
    assert "cannot hold one program" in number.detail and "shared memory" in number.detail, number
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
